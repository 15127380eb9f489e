#!/bin/sh
# Rebuilds an archive of a Lifeboat backup without Lifeboat: a tar stream on standard output.
# Needs sh, dd, zstd and room in $TMPDIR for the decompressed packs of one archive.
#
#   sh RECOVER.sh                          lists the backups
#   sh RECOVER.sh BACKUP                   lists its archives
#   sh RECOVER.sh BACKUP ARCHIVE > a.tar   writes the archive
set -eu

repo=$(cd "$(dirname "$0")" && pwd)
work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

die() {
	printf '%s\n' "RECOVER.sh: $*" >&2
	exit 1
}

# The pack's decompressed bytes, as a file that is made once.
unpacked() {
	if [ ! -e "$work/$1" ]; then
		file=$repo/packs/$(printf '%s' "$1" | cut -c1-2)/$1.zst
		[ -r "$file" ] || die "pack $1 is missing"
		found=$(sha256sum <"$file" | cut -d' ' -f1)
		[ "$found" = "$1" ] || die "pack $1 is damaged: its SHA-256 is $found"
		zstd -dqc "$file" >"$work/$1" || die "pack $1 does not decompress"
	fi
}

# Writes the bytes that a ranges file (of any depth) describes.
emit() {
	depth=$(sed -n '1s/^# lifeboat ranges 1 depth \([0-9]*\)$/\1/p' "$1")
	[ -n "$depth" ] || die "$1 is not a ranges file"
	while [ "$depth" -gt 0 ]; do
		cut_ranges "$1" >"$work/ranges.next"
		mv "$work/ranges.next" "$work/ranges"
		set -- "$work/ranges"
		depth=$((depth - 1))
	done
	cut_ranges "$1"
}

cut_ranges() {
	sed 1d "$1" | while read -r pack offset length; do
		unpacked "$pack"
		dd if="$work/$pack" bs=1048576 iflag=skip_bytes,count_bytes skip="$offset" count="$length" status=none
	done
}

case $# in
0)
	for manifest in "$repo"/backups/*/manifest.json; do
		[ -e "$manifest" ] || die "there are no backups"
		basename "$(dirname "$manifest")"
	done
	;;
1)
	[ -e "$repo/backups/$1/manifest.json" ] || die "there is no backup $1"
	for ranges in "$repo/backups/$1"/*.ranges; do
		basename "$ranges" .ranges
	done
	;;
2)
	[ -e "$repo/backups/$1/manifest.json" ] || die "there is no backup $1"
	[ -e "$repo/backups/$1/$2.ranges" ] || die "backup $1 has no archive $2"
	work=$(mktemp -d "${TMPDIR:-/tmp}/recover.XXXXXX")
	emit "$repo/backups/$1/$2.ranges"
	;;
*) die "usage: sh RECOVER.sh [BACKUP [ARCHIVE]]" ;;
esac
