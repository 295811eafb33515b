#!/bin/sh
# Joins at the first start, then takes part. Arguments go to `fedclient start`.
#   MOTLEY_NAME        this client's name
#   MOTLEY_TOKEN       the join token, or
#   MOTLEY_TOKEN_FILE  a file that holds it; read at the first start alone
set -eu
: "${MOTLEY_NAME:?name of this client}"
if [ ! -e "$MOTLEY_STATE/identity/client.pem" ]; then
    token=${MOTLEY_TOKEN:-}
    [ -n "$token" ] || token=$(cat "${MOTLEY_TOKEN_FILE:?a join token, in MOTLEY_TOKEN or in the file that this names}")
    fedclient join "$token" --name "$MOTLEY_NAME" --state "$MOTLEY_STATE"
    unset token
fi
unset MOTLEY_TOKEN
exec fedclient start --name "$MOTLEY_NAME" --state "$MOTLEY_STATE" --log-format json "$@"
