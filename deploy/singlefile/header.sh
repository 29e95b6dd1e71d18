#!/bin/sh
# cert-ctrl $VERSION for Python $PYTHON on $MACHINE: a zip file that Python runs. See docs/installing.md.
for python in /usr/bin/python$PYTHON /usr/local/bin/python$PYTHON; do
    if [ -x "$$python" ]; then exec "$$python" -IS "$$0" "$$@"; fi
done
# Not first: on the path may be a wrapper that starts slowly. Another Python reports its version.
python=$$(command -v python$PYTHON || command -v python3) && exec "$$python" -IS "$$0" "$$@"
echo "cert-ctrl: Python $PYTHON is not installed" >&2
exit 78
