#!/bin/bash
# The official image's contract, in short: initialise an empty PGDATA from POSTGRES_*, run /docker-entrypoint-initdb.d
# against a server that only listens on the socket, then become `postgres "$@"` as the unprivileged user.
set -Eeuo pipefail

die() { printf '%s\n' "Error: $*" >&2; exit 1; }

# file_env NAME [DEFAULT]: the value of NAME or of the file NAME_FILE, never both.
file_env() {
    local name=$1 file=$1_FILE default=${2:-}
    [ -z "${!name:-}" ] || [ -z "${!file:-}" ] || die "both $name and $file are set (but are exclusive)"
    local value=${!name:-$default}
    [ -z "${!file:-}" ] || value=$(<"${!file}")
    export "$name=$value"
    unset "$file"
}

own_directories() {
    mkdir -p "$PGDATA"
    chmod 00700 "$PGDATA" 2>/dev/null || :
    mkdir -p /var/run/postgresql
    chmod 03775 /var/run/postgresql 2>/dev/null || :
    if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
        mkdir -p "$POSTGRES_INITDB_WALDIR"
        chmod 700 "$POSTGRES_INITDB_WALDIR"
    fi
    if [ "$(id -u)" = 0 ]; then
        find "$PGDATA" /var/run/postgresql ${POSTGRES_INITDB_WALDIR:+"$POSTGRES_INITDB_WALDIR"} \
            \! -user postgres -exec chown postgres '{}' +
    fi
}

read_environment() {
    file_env POSTGRES_PASSWORD
    file_env POSTGRES_USER postgres
    file_env POSTGRES_DB "$POSTGRES_USER"
    file_env POSTGRES_INITDB_ARGS
    : "${POSTGRES_HOST_AUTH_METHOD:=}"
}

initialise() {
    [ -n "$POSTGRES_PASSWORD" ] || [ "$POSTGRES_HOST_AUTH_METHOD" = trust ] \
        || die "Database is uninitialized and superuser password is not specified: set POSTGRES_PASSWORD"
    # POSTGRES_INITDB_ARGS is a list of words by contract.
    eval 'initdb --username="$POSTGRES_USER" --pwfile=<(printf "%s\n" "$POSTGRES_PASSWORD")' \
        "${POSTGRES_INITDB_WALDIR:+--waldir '$POSTGRES_INITDB_WALDIR'}" "$POSTGRES_INITDB_ARGS"
    local method=${POSTGRES_HOST_AUTH_METHOD:-$(postgres -C password_encryption "$@")}
    printf '\nhost all all all %s\n' "$method" >>"$PGDATA/pg_hba.conf"
}

run_sql() {
    PGHOST='' PGHOSTADDR='' psql -v ON_ERROR_STOP=1 --no-psqlrc --no-password --username "$POSTGRES_USER" "$@"
}

# Everything that needs a server happens before it can be reached from outside: whoever connects finds it complete.
set_up() {
    set -- "$@" -c listen_addresses= -p "${PGPORT:-5432}"
    PGUSER=${PGUSER:-$POSTGRES_USER} pg_ctl -D "$PGDATA" -w start \
        -o "$(printf ' %q' "$@")"
    export PGPASSWORD=${PGPASSWORD:-$POSTGRES_PASSWORD}
    if [ -z "$(run_sql --dbname postgres -At -v db="$POSTGRES_DB" <<<"SELECT 1 FROM pg_database WHERE datname = :'db'")" ]; then
        run_sql --dbname postgres -v db="$POSTGRES_DB" <<<'CREATE DATABASE :"db"'
    fi
    local file
    for file in /docker-entrypoint-initdb.d/*; do
        printf '%s: running %s\n' "$0" "$file"
        case "$file" in
            *.sh)
                if [ -x "$file" ]; then "$file"; else
                    # shellcheck disable=SC1090 # the user's own script
                    . "$file"
                fi ;;
            *.sql) run_sql --dbname "$POSTGRES_DB" -f "$file" ;;
            *.sql.gz) gunzip -c "$file" | run_sql --dbname "$POSTGRES_DB" ;;
            *.sql.xz) xzcat "$file" | run_sql --dbname "$POSTGRES_DB" ;;
            *.sql.zst) zstd -dc "$file" | run_sql --dbname "$POSTGRES_DB" ;;
            *) printf '%s: ignoring %s\n' "$0" "$file" ;;
        esac
    done
    unset PGPASSWORD
    PGUSER=${PGUSER:-postgres} pg_ctl -D "$PGDATA" -m fast -w stop
    printf '\nPostgreSQL init process complete; ready for start up.\n\n'
}

wants_help() {
    local argument
    for argument; do
        case "$argument" in -'?' | --help | --describe-config | -V | --version) return 0 ;; esac
    done
    return 1
}

shopt -s nullglob
[ "${1:0:1}" != - ] || set -- postgres "$@"
if [ "${1:-}" = postgres ] && ! wants_help "$@"; then
    own_directories
    # Once more as the user that owns the data: from here on nothing needs root.
    [ "$(id -u)" != 0 ] || exec gosu postgres "$0" "$@"
    read_environment
    if [ ! -s "$PGDATA/PG_VERSION" ]; then
        initialise "${@:2}"
        set_up "${@:2}"
    else
        printf '\nPostgreSQL Database directory appears to contain a database; Skipping initialization\n\n'
    fi
fi
exec "$@"
