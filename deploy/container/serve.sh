#!/bin/sh
# Makes the certificate authority at the first start, then serves. Arguments go to `fedserver serve`.
#   MOTLEY_ADDRESS  HOST[:PORT] by which devices reach this server
set -eu
if [ ! -e "$MOTLEY_DATA/identity/authority.pem" ]; then
    # Its join token would stay in the log: it is not shown. Make one with `fedserver tokens create`.
    fedserver init --data "$MOTLEY_DATA" --address "${MOTLEY_ADDRESS:?HOST[:PORT] by which devices reach this server}" \
        --uses 1 --lifetime 1m >/dev/null
fi
exec fedserver serve --data "$MOTLEY_DATA" --log-format json "$@"
