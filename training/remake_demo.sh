#!/usr/bin/env bash
# Remakes the demo checkpoint:  training/remake_demo.sh RECORDINGS OUT
#
# RECORDINGS holds the digits of eight speakers: fsdd/ and digits/{cmn_chen_wang,cmn_yue_tan,yue_kt,yue_jyutping_org}/ (see
# training/README.md). OUT gets the data (2 GB), both runs and the tables. An hour and a half on two cores.
#
# There are only two recorded speakers of Mandarin and two of Cantonese. So the first run leaves out one of each, to measure
# what becomes of people whom the model has not heard, and the second goes on from it with all of them.
set -euo pipefail
recordings=$1 out=$2
cd "$(dirname "$0")/.."
unheard="cmn_yue_tan yue_jyutping_org"
data=$out/digits

# Without these, memory is given back to the system and asked for again: the first steps took 2.4 s each instead of 0.5 s.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456

python training/make_demo.py "$out/init"
python training/make_digits.py "$data" --recorded-en "$recordings/fsdd" \
    --recorded-zh "$recordings/digits/cmn_chen_wang" "$recordings/digits/cmn_yue_tan" \
    --recorded-yue "$recordings/digits/yue_kt" "$recordings/digits/yue_jyutping_org" \
    --hold-out-speaker lucas --evaluate-speaker $unheard --count 14000
python training/train.py "$out/init" --from-scratch --train "$data/train.jsonl" --without $unheard \
    --eval "$data"/eval_{espeak,recorded}_{zh,yue,en}.jsonl --out "$out/first" --steps 5000 --ramp 1200 --warmup 200 --rate 1.2e-3 --short 0.8 \
    --batch-seconds 60 --dtype bfloat16
python training/evaluate.py "$out/first/model" "$data"/eval_*.jsonl | tee "$out/first.md"
python training/train.py "$out/first/model" --train "$data/train.jsonl" --eval "$data"/eval_espeak_{zh,yue,en}.jsonl \
    --out "$out/second" --steps 2000 --rate 6e-4 --warmup 100 --short 0.7 --batch-seconds 60 --dtype bfloat16 --seed 2
python training/evaluate.py "$out/second/model" "$data"/eval_*.jsonl | tee "$out/second.md"
