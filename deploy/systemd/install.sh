#!/bin/sh
# Puts the units in place; the programs are in /opt/motley by then. As root:
#   install.sh server
#   install.sh client NAME [--gpu]
# Settings that are there already stay. DESTDIR is put before every path.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=${DESTDIR:-}
role=${1:-}
name=${2:-}

usage() {
    echo "usage: install.sh server | install.sh client NAME [--gpu]" >&2
    exit 2
}

keep() { # SOURCE TARGET: copy unless it is there
    [ -e "$root$2" ] || install -D -m 0640 "$here/$1" "$root$2"
}

case $role in
server)
    install -D -m 0644 "$here/fedserver.service" "$root/etc/systemd/system/fedserver.service"
    keep fedserver.env /etc/motley/fedserver.env
    unit=fedserver.service
    settings=/etc/motley/fedserver.env
    ;;
client)
    case $name in
    "" | -* | . | .. | *[!A-Za-z0-9._-]*) usage ;;
    esac
    install -D -m 0644 "$here/fedclient@.service" "$root/etc/systemd/system/fedclient@.service"
    if [ "${3:-}" = --gpu ]; then
        install -D -m 0644 "$here/gpu.conf" "$root/etc/systemd/system/fedclient@.service.d/gpu.conf"
    fi
    keep fedclient.env "/etc/motley/$name.env"
    unit="fedclient@$name.service"
    settings="/etc/motley/$name.env"
    ;;
*) usage ;;
esac

install -D -m 0644 "$here/sysusers.conf" "$root/etc/sysusers.d/motley.conf"
if [ -z "$root" ]; then
    systemd-sysusers /etc/sysusers.d/motley.conf
    systemctl daemon-reload
fi
echo "settings    $settings"
if [ "$role" = client ]; then
    echo "join        install -d -o motley -g motley -m 0700 /var/lib/motley /var/lib/motley/clients /var/lib/motley/clients/$name"
    echo "            runuser -u motley -- /opt/motley/bin/fedclient join TOKEN --name $name --state /var/lib/motley/clients/$name"
fi
echo "start       systemctl enable --now $unit"
