"""The pipeline: material, plan, policy, commands, probes, the runner that makes \"renewed\" mean \"served\"."""
