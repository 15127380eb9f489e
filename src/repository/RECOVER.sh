#!/bin/sh
# Rebuilds an archive of a Lifeboat backup without Lifeboat: a tar stream on standard output.
# Needs sh, awk, dd, zstd, for an encrypted repository age, and room in $TMPDIR for the decompressed packs of
# one archive.
#
#   sh RECOVER.sh                          lists the backups
#   sh RECOVER.sh BACKUP                   lists its archives
#   sh RECOVER.sh BACKUP ARCHIVE > a.tar   writes the archive
#
# Of an encrypted repository age asks for the passphrase; with IDENTITY=FILE in the environment the age
# identity in that file is used instead.
set -eu

repo=$(cd "$(dirname "$0")" && pwd)
work=
age=
[ -z "$(find "$repo/backups" -name manifest.json.age 2>/dev/null | head -n 1)" ] || age=.age
trap '[ -z "$work" ] || rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

die() {
	printf '%s\n' "RECOVER.sh: $*" >&2
	exit 1
}

# Whether a file commits something: "void" only keeps a run that died from doing it late.
committed() {
	[ -e "$1" ] && [ "$(wc -c <"$1")" -gt 5 ]
}

# Where packs are unpacked; only this user may look, for the key lies there too.
prepare() {
	work=$(umask 077 && mktemp -d "${TMPDIR:-/tmp}/recover.XXXXXX")
	[ -n "$age" ] || return 0
	if [ -n "${IDENTITY:-}" ]; then
		cp "$IDENTITY" "$work/key"
	else
		age -d -o "$work/key" "$repo/keys/identity.age" || die "keys/identity.age was not opened"
	fi
}

# A file of the repository, decrypted.
plain() {
	if [ -n "$age" ]; then
		age -d -i "$work/key" "$repo/$1$age" || die "$1$age was not decrypted"
	else
		cat "$repo/$1"
	fi
}

pack_name() {
	printf 'packs/%s/%s.zst' "$(printf '%s' "$1" | cut -c1-2)" "$1"
}

# The pack's decompressed bytes, as a file that is made once.
unpacked() {
	if [ ! -e "$work/$1" ]; then
		name=$(pack_name "$1")
		[ -r "$repo/$name$age" ] || die "pack $1 is missing"
		found=$(sha256sum <"$repo/$name$age" | cut -d' ' -f1)
		[ "$found" = "$1" ] || die "pack $1 is damaged: its SHA-256 is $found"
		plain "$name" >"$work/zst"
		zstd -dqc "$work/zst" >"$work/$1" || die "pack $1 does not decompress"
	fi
}

# The lists of where the pieces of a pack went; only those of runs that came to their end count.
moves() {
	for file in "$repo"/moved/*/"$1$age"; do
		[ -e "$file" ] && committed "$(dirname "$file")/packs" || continue
		printf '%s\n' "$(basename "$(dirname "$file")")"
	done
}

pieces() {
	plain "moved/$1/$2" | sed '/^#/d'
}

# Whether a run put a pack's pieces only where they still are, or moved on from.
whole() (
	for to in $(pieces "$1" "$2" | cut -d' ' -f3 | sort -u); do
		there "$to" || exit 1
	done
)

there() {
	[ ! -e "$repo/$(pack_name "$1")$age" ] || return 0
	for run in $(moves "$1"); do
		! whole "$run" "$1" || return 0
	done
	return 1
}

# Where the pieces of a pack went. Of several runs that moved it those come first whose packs are there.
moved_pieces() {
	runs=$(moves "$1")
	case $runs in
	*[[:space:]]*)
		for run in $runs; do ! whole "$run" "$1" || pieces "$run" "$1"; done
		for run in $runs; do whole "$run" "$1" || pieces "$run" "$1"; done
		;;
	?*) pieces "$runs" "$1" ;;
	esac
}

# Replaces pieces of packs that were rewritten by where they are now.
follow_moves() {
	while :; do
		changed=
		for pack in $(sed 1d "$1" | cut -d' ' -f1 | sort -u); do
			[ ! -e "$repo/$(pack_name "$pack")$age" ] || continue
			moved_pieces "$pack" >"$work/moved"
			[ -s "$work/moved" ] || continue
			awk -v pack="$pack" '
				FNR == NR { n++; from[n] = $1; len[n] = $2; to[n] = $3; at[n] = $4; next }
				$1 != pack { print; next }
				{
					place = $2; left = $3
					for (i = 1; i <= n && left > 0; i++)
						if (from[i] <= place && place < from[i] + len[i]) {
							take = from[i] + len[i] - place
							if (take > left) take = left
							print to[i], at[i] + place - from[i], take
							place += take; left -= take
						}
					if (left > 0) exit 1
				}' "$work/moved" "$1" >"$work/ranges.moved" || die "a part of pack $pack is lost"
			mv "$work/ranges.moved" "$1"
			changed=yes
		done
		[ -n "$changed" ] || return 0
	done
}

# Writes the bytes that a list of ranges (of any depth) describes.
emit() {
	depth=$(sed -n '1s/^# lifeboat ranges 1 depth \([0-9]*\)$/\1/p' "$work/ranges")
	[ -n "$depth" ] || die "the ranges are not a list of ranges"
	while [ "$depth" -gt 0 ]; do
		cut_ranges >"$work/ranges.next"
		mv "$work/ranges.next" "$work/ranges"
		depth=$((depth - 1))
	done
	cut_ranges
}

cut_ranges() {
	follow_moves "$work/ranges"
	sed 1d "$work/ranges" | while read -r pack offset length; do
		unpacked "$pack"
		dd if="$work/$pack" bs=1048576 iflag=skip_bytes,count_bytes skip="$offset" count="$length" status=none
	done
}

case $# in
0)
	for manifest in "$repo"/backups/*/manifest.json$age; do
		[ -e "$manifest" ] || die "there are no backups"
		! committed "$manifest" || basename "$(dirname "$manifest")"
	done
	;;
1)
	committed "$repo/backups/$1/manifest.json$age" || die "there is no backup $1"
	for ranges in "$repo/backups/$1"/*.ranges$age; do
		basename "$ranges" ".ranges$age"
	done
	;;
2)
	committed "$repo/backups/$1/manifest.json$age" || die "there is no backup $1"
	[ -e "$repo/backups/$1/$2.ranges$age" ] || die "backup $1 has no archive $2"
	prepare
	plain "backups/$1/$2.ranges" >"$work/ranges"
	emit
	;;
*) die "usage: sh RECOVER.sh [BACKUP [ARCHIVE]]" ;;
esac
