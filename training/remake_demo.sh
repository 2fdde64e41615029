#!/usr/bin/env bash
# Remakes the demo checkpoint:  training/remake_demo.sh RECORDINGS OUT
#
# RECORDINGS holds the digits of eight speakers: fsdd/ and digits/{cmn_chen_wang,cmn_yue_tan,yue_kt,yue_jyutping_org}/ (see
# training/README.md). OUT gets the data (3 GB), the runs and the tables. About five hours on two cores. PART=100 makes a
# hundredth of the data and of the steps, in small batches: it shows that all of it runs, and the models are good for nothing.
#
# There are only two recorded speakers of Mandarin and two of Cantonese. So the first two runs leave out one of each, to measure
# errors on speakers that the model was not trained on, and the third goes on from there with all of them.
set -euo pipefail
recordings=$1 out=$2 part=${PART:-1}
batch=$((part > 1 ? 12 : 60))          # seconds
cd "$(dirname "$0")/.."
unseen="cmn_yue_tan yue_jyutping_org"
data=$out/digits

# Without these, memory is given back to the system and asked for again: the first steps took 2.4 s each instead of 0.5 s.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456

python training/make_demo.py "$out/init"
python training/make_digits.py "$data" --recorded-en "$recordings/fsdd" \
    --recorded-zh "$recordings/digits/cmn_chen_wang" "$recordings/digits/cmn_yue_tan" \
    --recorded-yue "$recordings/digits/yue_kt" "$recordings/digits/yue_jyutping_org" \
    --hold-out-speaker lucas --evaluate-speaker $unseen \
    --count $((24000 / part)) --faces $((500 / part)) --eval-count $(((119 + part) / part))

train() {   # MODEL OUT STEPS, then options; a model that was begun may well make more errors than the trainer believes
    python training/train.py "$1" --train "$data/train.jsonl" --eval "$data"/eval_{espeak,noisy_espeak,recorded}_{zh,yue,en}.jsonl \
        --out "$out/$2" --steps $(($3 / part)) --recipe scratch --batch-seconds $batch --dtype bfloat16 --accept-errors "${@:4}"
}

# Short clean recordings first: long and changed ones teach a fresh model nothing for thousands of steps.
train "$out/init" begin 5000 --without $unseen --from-scratch --ramp 1200 --warmup 200 --rate 1.2e-3 --short 0.8
train "$out/begin/model" unseen 4000 --without $unseen --warmup 100 --rate 1e-3 --short 0.85 --seed 3
python training/evaluate.py "$out/unseen/model" "$data"/eval_*.jsonl | tee "$out/unseen.md"
# Some words are read wrongly, against answers that go on for ever after a wrong word; now and then there is no speech; and half of the
# recordings are joined, as they come in the windows of a long one.
train "$out/unseen/model" demo 13000 --warmup 100 --rate 8e-4 --short 0.9 --seed 4 --misread 0.1 --silence 0.02 --join 0.5 --mean 0.999
python training/evaluate.py "$out/demo/model" "$data"/eval_*.jsonl | tee "$out/demo.md"
