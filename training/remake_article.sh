#!/usr/bin/env bash
# Remakes the second demo checkpoint, of the article's design:  training/remake_article.sh OUT
#
# OUT is that of remake_demo.sh: the data in it are used, and it gets the runs and the tables. PART=100: as there.
#
# As in the first run there, one of the two recorded speakers of Mandarin and of Cantonese is left out, to measure errors on
# speakers that the model was not trained on. The second run begins where the first ended: now times weigh more, and recorded people
# come twice as often. Last the two frontends get the same short budget, from scratch: log-mel, and the article's
# convolutions on the raw waveform. This is the recipe as it should be run from now on; it was not run as a whole yet: the weights
# that are there came about in pieces, as their card says.
set -euo pipefail
out=$1 part=${PART:-1}
batch=$((part > 1 ? 12 : 60))          # seconds
cd "$(dirname "$0")/.."
unseen="cmn_yue_tan yue_jyutping_org"
data=$out/digits
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456     # see remake_demo.sh

train() {   # MODEL OUT STEPS, then options
    python training/train.py "$1" --train "$data/train.jsonl" --eval "$data"/eval_{espeak,recorded}_{zh,yue,en}.jsonl \
        --out "$out/$2" --steps $(($3 / part)) --recipe scratch --batch-seconds $batch --dtype bfloat16 --accept-errors \
        --silence 0.02 --misread 0.05 --join 0.35 "${@:4}"
}
measure() { # RUN
    { python training/evaluate.py "$out/$1/model" "$data"/eval_*.jsonl
      python training/evaluate.py "$out/$1/model" "$data"/eval_{espeak,noisy_espeak,phrases}_*.jsonl --language auto
      python training/evaluate.py "$out/$1/model" "$data"/eval_phrases_*.jsonl --timestamps
      python training/evaluate.py "$out/$1/model" "$data"/eval_{espeak,recorded}_*.jsonl --beams 5
    } | tee "$out/$1.md"
}
recorded="cmn_chen_wang yue_kt george jackson nicolas"

python training/make_article.py "$out/article-init"
python training/make_article.py "$out/waveform-init" --waveform
train "$out/article-init" article-words 9000 --from-scratch --without $unseen --ramp 2000 --warmup 200 --rate 1.2e-3 --short 0.95 --seed 5
train "$out/article-words/model" article 4500 --without $unseen --twice $recorded --times 0.7 --warmup 100 --rate 7e-4 --short 0.93 --seed 6
measure article
for frontend in article waveform; do
    train "$out/$frontend-init" "$frontend-frontend" 1500 --from-scratch --without $unseen --twice $recorded --ramp 1200 --warmup 100 \
        --rate 1.2e-3 --short 0.95 --join 0.2 --mean 0.995 --seed 20
    measure "$frontend-frontend"
done
