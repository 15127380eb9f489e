#!/bin/sh
# The kit's one-shot: what has one of these ids already is overwritten, and that is why no restore may set it off.
set -eu
n8n import:credentials --separate --input=/demo-data/credentials
n8n import:workflow --separate --input=/demo-data/workflows
# An import leaves every workflow inactive, whatever the file says (--activeState works in queue mode only).
for id in lifeboatOrders01 lifeboatFile0001; do
    n8n publish:workflow --id="$id"
done
