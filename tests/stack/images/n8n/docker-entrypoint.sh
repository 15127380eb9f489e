#!/bin/sh
# Everything after the image's name goes to n8n, as in the official image.
set -eu
exec n8n "$@"
