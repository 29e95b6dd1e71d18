"""The control plane's HTTP server: routes, bodies, middleware and pages."""
