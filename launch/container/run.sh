#!/bin/sh
# What a container does when it is started: a mask in /output for every case in /input, by the
# student in /model. Words that are no flags are a command of kd-jax instead: "doctor", "train ...".
#
# Nobody has to exist as a user in here, and the root file system may be read-only: only /output and
# a temporary folder (/tmp, or TMPDIR) are written. No network is needed.
set -eu

input=${KD_JAX_INPUT:-/input}
output=${KD_JAX_OUTPUT:-/output}
model=${KD_JAX_MODEL:-/model}

fail() {
  echo "error: $*" >&2
  exit 1
}

work=$(mktemp -d) || fail "no temporary folder can be written; give one: --tmpfs /tmp"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# An unknown user has no home, or one that is not theirs.
if [ ! -w "${HOME:-/}" ] || [ "${HOME:-/}" = / ]; then
  export HOME="$work"
fi
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$work/cache}" MPLCONFIGDIR="${MPLCONFIGDIR:-$work/matplotlib}"

case "${1:-}" in
  --help | --version | [!-]*)
    status=0
    kd-jax "$@" || status=$?
    exit $status
    ;;
  *) ;; # nothing, or flags of the prediction
esac

[ -d "$input" ] || fail "there is no $input; mount the scans there: -v SCANS:$input:ro"
[ -n "$(ls -A "$input")" ] || fail "$input is empty; mount the scans there: -v SCANS:$input:ro"
[ -n "$(ls -A "$model" 2>/dev/null)" ] ||
  fail "there is no student in $model; mount one that --mode=export has written: -v STUDENT:$model:ro"
[ -d "$output" ] || fail "there is no $output; mount a folder there: -v MASKS:$output"
touch "$output/.kd_jax" 2>/dev/null ||
  fail "user $(id -u) may not write to $output; add --user to docker run, or change the folder's owner"
rm -f "$output/.kd_jax"

# Who collects the masks reads every file in /output as one: the records of the prediction stay here.
mkdir "$work/masks"
status=0
kd-jax predict --checkpoint="$model" --input="$input" --output="$work/masks" "$@" || status=$?
for mask in "$work"/masks/*.nii.gz; do
  [ -e "$mask" ] || break
  name=${mask##*/}
  cp "$mask" "$output/.$name.part" # not there by halves
  mv -f "$output/.$name.part" "$output/$name"
  echo "mask: $output/$name"
done
exit $status
