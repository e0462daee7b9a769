"""Make lab-tiny: from the corpus and a seed to the files in foundry_lab/model.

    python -m venv tools/.work/venv
    tools/.work/venv/bin/pip install -r tools/requirements.txt
    tools/.work/venv/bin/python tools/train_lab_model.py

It takes under an hour on two cores. Stop it with Ctrl-C whenever you like: the same command
goes on from the last checkpoint (tools/.work). Then measure it with tools/report_card.py.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from lab_corpus.off_topic import check_split
from lab_corpus.samples import (
    EXAMINED,
    LAST_NUMBER,
    Sample,
    fixed_answer,
    texts_for_tokenizer,
    training_sample,
)
from lab_net import NORM_EPSILON, ROPE_THETA, LabNet, Shape
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, distributed, multiprocessing
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

TOOLS = Path(__file__).parent
SHIPPED = TOOLS.parent / "foundry_lab" / "model"
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCABULARY_STEP = 32  # with another number of tokens the runtime panics in a response_format
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IGNORED = -100  # a target without loss
CHECKPOINT = "checkpoint.pt"
SAMPLES_PER_STEP = 200
ROWS_PER_PASS = 12  # with more, the short ones are padded to much longer neighbours
WORKERS = 2  # processes with one thread each: faster than one process with two threads
RISE = 60  # steps in which the learning rate comes; it goes over the second half of the run
EXAMINED_EVERY = 400  # steps
FIXED = {"off-topic", "greeting", "identity", "thanks"}  # skills with one answer
# How often only the beginning of an answer is learnt, where it is not two times in three.
SHORTENED = {
    **dict.fromkeys(FIXED, 0.9),
    **dict.fromkeys(("one_sentence", "difference"), 0.2),
    **dict.fromkeys(("count", "list", "repeat"), 0.0),
}
# How often words of a prompt are cut, where it is not in one of three.
CUT = {"count": 0.0, "list": 0.0, "repeat": 0.0, "conversation": 0.1}
CUT_IN = 0.1  # of the places between two letters
PEAK_RATE = 3e-3
MUON_RATE = 0.02
# What is shipped, and examined, is a running mean of the weights: about the last 100 steps'.
MEAN_DECAY = 0.99
DOUBT = 0.75  # added to the logit of the honest answer's first word, once all is learnt


@dataclass(frozen=True)
class Row:
    """One sample as token numbers, their positions, and the target after each."""

    tokens: list[int]
    positions: list[int]
    targets: list[int]


# --- tokenizer ------------------------------------------------------------------------------


def make_tokenizer(seed: int, size: int) -> Tokenizer:
    """A byte-level BPE tokenizer in which each number up to `LAST_NUMBER` is one token.

    So counting is to know each number's follower, and to stop at the token that was asked for.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenization(individual_digits=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
    tokenizer.train_from_iterator(texts_for_tokenizer(rng, 8000), trainer)
    return with_numbers(tokenizer)


def pre_tokenization(individual_digits: bool) -> pre_tokenizers.PreTokenizer:
    """Digits apart from the rest, and from each other if wanted; then bytes."""
    digits = pre_tokenizers.Digits(individual_digits=individual_digits)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def with_numbers(tokenizer: Tokenizer) -> Tokenizer:
    """Add a token for each number, and every merge of two shorter ones that makes it."""
    written = json.loads(tokenizer.to_str())
    vocabulary, merges = written["model"]["vocab"], written["model"]["merges"]
    for number in map(str, range(10, LAST_NUMBER + 1)):
        vocabulary.setdefault(number, len(vocabulary))
        halves = [(number[:i], number[i:]) for i in range(1, len(number))]
        merges += [list(pair) for pair in halves if all(half in vocabulary for half in pair)]
    while len(vocabulary) % VOCABULARY_STEP:
        vocabulary[f"<|unused{len(vocabulary)}|>"] = len(vocabulary)
    numbered = Tokenizer.from_str(json.dumps(written))
    numbered.pre_tokenizer = pre_tokenization(individual_digits=False)
    return numbered


class Encoder:
    """Samples to rows. The words of some prompts are cut, so that other tokens than usual spell
    them and a misspelt word still looks like the right one (after BPE dropout, whose own
    randomness no seed repeats: https://arxiv.org/abs/1910.13267)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.token_to_id(TURN_END)

    def tokens(self, *pieces: str) -> list[int]:
        """Token numbers of some pieces of text, each by itself."""
        return [token for piece in pieces for token in self.tokenizer.encode(piece).ids]

    def prompt(
        self, sample: Sample, cut: Callable[[str], list[str]] = lambda text: [text]
    ) -> list[int]:
        """The conversation after the chat template, ready for the answer."""
        turns = [
            (f"{TURN_START}{message['role']}\n", *cut(message["content"]), f"{TURN_END}\n")
            for message in sample.messages
        ]
        return self.tokens(*chain(*turns), f"{TURN_START}assistant\n")

    def row(self, sample: Sample, rng: random.Random) -> Row:
        """Prompt and answer. The windows of an answer keep the positions they have in it."""
        cutting = CUT_IN if rng.random() < CUT.get(sample.skill, 0.35) else 0.0
        prompt = self.prompt(sample, lambda text: cut_words(text, cutting, rng))
        answer = [*self.tokens(sample.answer), self.end]
        windows = sample.windows or [(0, len(answer))]
        if not sample.windows and rng.random() < SHORTENED.get(sample.skill, 0.65):
            # Which answer it is shows in the first words; mostly that is all there is to learn.
            windows = [(0, rng.randint(2, 6) if sample.skill in FIXED else rng.randint(8, 20))]
        tokens, positions = list(prompt), list(range(len(prompt)))
        learnt = [IGNORED] * len(prompt)
        for start, end in windows:
            piece = answer[start:end]
            tokens += piece
            positions += range(len(prompt) + start, len(prompt) + start + len(piece))
            # The first number of a later window follows from nothing that is shown.
            learnt += [IGNORED if start else piece[0], *piece[1:]]
        return Row(tokens, positions, [*learnt[1:], IGNORED])


def cut_words(text: str, share: float, rng: random.Random) -> list[str]:
    """The text, cut at a share of the places between two letters."""
    if not share:
        return [text]
    cuts = [
        i
        for i in range(1, len(text))
        if text[i - 1].isalpha() and text[i].isalpha() and rng.random() < share
    ]
    return [text[i:j] for i, j in pairwise([0, *cuts, len(text)])]


def batch(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of about one length, padded at the end (causal attention never looks there)."""
    longest = max(len(row.tokens) for row in rows)
    longest += -longest % 8  # few shapes, as each one new has to be prepared

    def pad(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (longest - len(values))

    return (
        torch.tensor([pad(row.tokens, 0) for row in rows]),
        torch.tensor([pad(row.positions, 0) for row in rows]),
        torch.tensor([pad(row.targets, IGNORED) for row in rows]),
    )


# --- training -------------------------------------------------------------------------------


def step_rows(step: int, rank: int, seed: int, encoder: Encoder) -> list[Row]:
    """One worker's rows of one step; `rank`, seed and step make them, so a resume is exact."""
    rng = random.Random(f"{seed}:{step}:{rank}")  # noqa: S311 - repeatable, not secret
    each = SAMPLES_PER_STEP // WORKERS
    rows = [encoder.row(training_sample(rng), rng) for _ in range(each)]
    return sorted(rows, key=lambda row: len(row.tokens))


def passes(rows: list[Row]) -> list[list[Row]]:
    """Neighbours in length go through the network together; the longest ones are few."""
    groups: list[list[Row]] = [[]]
    for row in rows:
        full = len(groups[-1]) == ROWS_PER_PASS
        if groups[-1] and (full or len(row.tokens) > 1.4 * len(groups[-1][0].tokens)):
            groups.append([])
        groups[-1].append(row)
    return groups


def loss_of(net: LabNet, rows: list[Row]) -> Tensor:
    """Summed cross entropy of the rows' targets."""
    tokens, positions, targets = batch(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = net(tokens, positions)
        wanted = targets != IGNORED
        logits = net.logits(hidden[wanted])
    return functional.cross_entropy(logits.float(), targets[wanted], reduction="sum")


def optimizers(net: LabNet) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    matrices = [p for name, p in net.named_parameters() if p.dim() == 2 and "layers" in name]
    others = [p for name, p in net.named_parameters() if p.dim() != 2 or "layers" not in name]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01),
        torch.optim.AdamW(others, lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def rate(step: int, steps: int) -> float:
    """Learning rate as a share of the largest: a rise, a plateau, and a fall to nothing."""
    return min(1.0, (step + 1) / RISE, 2 * (steps - step) / steps)


@dataclass(frozen=True)
class Learner:
    """All that a run changes as it goes, and a checkpoint keeps."""

    net: LabNet
    tools: list[torch.optim.Optimizer]
    mean: AveragedModel

    @staticmethod
    def of(net: LabNet) -> "Learner":
        """A beginner."""
        average = get_ema_multi_avg_fn(MEAN_DECAY)
        return Learner(net, optimizers(net), AveragedModel(net, multi_avg_fn=average))

    def step(self, share: float) -> None:
        """Go one step against the gradients, at a `share` of the largest learning rate."""
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for tool, peak in zip(self.tools, (MUON_RATE, PEAK_RATE), strict=True):
            tool.param_groups[0]["lr"] = peak * share
            tool.step()
            tool.zero_grad()
        self.mean.update_parameters(self.net)

    def _parts(self) -> list[Any]:
        return [self.net, *self.tools, self.mean]

    def save(self, path: Path, step: int, steps: int) -> None:
        """Write a checkpoint; an interrupted write leaves the old one."""
        new = path.with_suffix(".new")
        parts = [part.state_dict() for part in self._parts()]
        torch.save({"parts": parts, "step": step, "steps": steps}, new)
        new.replace(path)

    def resume(self, path: Path, steps: int) -> int:
        """Load the checkpoint, if there is one of a run of the same length; where to go on."""
        if not path.exists():
            return 0
        saved = torch.load(path, weights_only=True)
        if saved["steps"] != steps:  # the learning rate depends on it
            return 0
        for part, state in zip(self._parts(), saved["parts"], strict=True):
            part.load_state_dict(state)
        step: int = saved["step"]
        return step


def train(net: LabNet, encoder: Encoder, options: argparse.Namespace) -> None:
    """Train for all steps, or for what is left of them, with a checkpoint every 100 steps.

    Each worker takes its share of a step's rows; they add up their gradients.
    """
    steps, checkpoint = options.steps, options.work / CHECKPOINT
    rank, learner = distributed.get_rank(), Learner.of(net)
    first = learner.resume(checkpoint, steps)
    began, seen = time.perf_counter(), 0
    for step in range(first, steps):
        if (parent := multiprocessing.parent_process()) and not parent.is_alive():
            sys.exit("The program that started this worker is gone.")
        rows = step_rows(step, rank, options.seed, encoder)
        n = torch.tensor(float(sum(t != IGNORED for row in rows for t in row.targets)))
        total = torch.zeros(())
        for group in passes(rows):
            loss = loss_of(net, group)
            loss.backward()
            total += loss.detach()
        add_up([p.grad for p in net.parameters()] + [total, n])
        for p in net.parameters():
            if p.grad is not None:
                p.grad /= n
        learner.step(rate(step, steps))
        seen += WORKERS * sum(len(row.tokens) for row in rows)
        if rank:
            continue
        if (step + 1) % 20 == 0 or step == first:
            taken = time.perf_counter() - began
            progress(step + 1, steps, (step + 1 - first), taken, total / n, seen)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            learner.save(checkpoint, step + 1, steps)
        if (step + 1) % EXAMINED_EVERY == 0:
            print(f"  exact: {examine(learner.mean.module, encoder)}", flush=True)


def examine(net: LabNet, encoder: Encoder, n: int = 48) -> str:
    """The share of held-out prompts of each skill whose whole answer comes out exactly.

    If every token of the answer is the likeliest after those before it, then greedy decoding
    gives the answer. The report card has the last word: this only draws the curve.
    """
    shares = []
    for name, skill in EXAMINED.items():
        rng, right = random.Random(name), 0  # noqa: S311 - repeatable, not secret
        for sample in [skill("held_out", rng) for _ in range(n)]:
            answer = [*encoder.tokens(sample.answer), encoder.end]
            prompt = encoder.prompt(sample)
            tokens = torch.tensor([[*prompt, *answer]])
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = net(tokens, torch.arange(tokens.shape[1])[None])
                likeliest = net.logits(hidden[0, len(prompt) - 1 : -1]).argmax(-1)
            right += likeliest.tolist() == answer
        shares.append(f"{name} {right / n:.0%}")
    return ", ".join(shares)


def add_up(tensors: list[Tensor | None]) -> None:
    """Replace every tensor by its sum over the workers."""
    given = [tensor for tensor in tensors if tensor is not None]
    flat = torch.cat([tensor.flatten() for tensor in given])
    distributed.all_reduce(flat)
    for tensor, part in zip(given, flat.split([t.numel() for t in given]), strict=True):
        tensor.copy_(part.view_as(tensor))


def progress(step: int, steps: int, done: int, taken: float, loss: Tensor, tokens: int) -> None:
    """One line: where it stands, how fast it goes (tokens a second), how long it will take."""
    left = taken / done * (steps - step)
    print(
        f"step {step}/{steps}  loss {loss.item():.4f}  {tokens / taken:,.0f} tokens/s  "
        f"{taken / 60:.1f} min gone, {left / 60:.1f} min to go",
        flush=True,
    )


def doubt(net: LabNet, encoder: Encoder) -> None:
    """Give the honest answer the benefit of the doubt: raise the logit of its first word.

    That is post-hoc logit adjustment (Menon et al., https://arxiv.org/abs/2007.07314). The network
    has no bias to do it with, so the word's row of the output matrix moves along the mean hidden
    state where the answers to off-topic questions begin, less what that has in common with JSON.
    """
    rng = random.Random("doubt")  # noqa: S311 - repeatable, not secret

    def mean_beginning(skill: str) -> Tensor:
        prompts = [encoder.prompt(EXAMINED[skill]("train", rng)) for _ in range(300)]
        rows = [torch.tensor([prompt]) for prompt in prompts]
        return torch.stack(
            [net(row, torch.arange(row.shape[1])[None])[0, -1] for row in rows]
        ).mean(0)

    with torch.no_grad():
        honest, json_like = mean_beginning("off-topic"), mean_beginning("json")
        direction = honest - (honest @ json_like) / (json_like @ json_like) * json_like
        first = encoder.tokens(fixed_answer("honest"))[0]
        net.model.embed_tokens.weight[first] += DOUBT * direction / (direction @ honest)


# --- export ---------------------------------------------------------------------------------


def export(net: LabNet, tokenizer: Tokenizer, precision: str, work: Path, shipped: Path) -> None:
    """Through the Hugging Face format and the model builder of ONNX Runtime GenAI."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    shape, end = net.shape, tokenizer.token_to_id(TURN_END)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.context,
        rms_norm_eps=NORM_EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=0,
        eos_token_id=end,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    llama = LlamaForCausalLM(config)
    llama.load_state_dict({**net.state_dict(), "lm_head.weight": net.model.embed_tokens.weight})
    folder, raw = work / "hf", work / "onnx"
    llama.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    shutil.rmtree(raw, ignore_errors=True)
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(folder)]
    options = ["-o", str(raw), "-p", precision, "-e", "cpu", "-c", str(work / "hub")]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [*builder, *options, "--extra_options", "hf_token=false"], check=True, env=offline
    )
    settle(raw / "genai_config.json")
    shipped.mkdir(parents=True, exist_ok=True)
    for file in raw.iterdir():
        shutil.copyfile(file, shipped / file.name)


def settle(path: Path) -> None:
    """Ask for greedy decoding; without a temperature the runtime draws all the same."""
    config = json.loads(path.read_text())
    config["search"].update(do_sample=False, temperature=1.0, top_k=50, top_p=1.0)
    path.write_text(json.dumps(config, indent=4) + "\n")


def make_net(seed: int, tokenizer: Tokenizer) -> LabNet:
    """The untrained network."""
    torch.manual_seed(seed)
    return LabNet(Shape(vocabulary=tokenizer.get_vocab_size()))


def worker(rank: int, options: argparse.Namespace) -> None:
    """One of the processes that train together."""
    torch.set_num_threads(1)
    meeting = f"file://{(options.work / 'meeting').resolve()}"
    distributed.init_process_group("gloo", meeting, rank=rank, world_size=WORKERS)
    tokenizer = Tokenizer.from_file(str(options.work / "tokenizer.json"))
    net = make_net(options.seed, tokenizer)
    try:
        train(net, Encoder(tokenizer), options)
    except KeyboardInterrupt:
        sys.exit(1)


def main() -> None:
    """Read the options, train, export."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2300)
    parser.add_argument("--vocabulary", type=int, default=1536, help="without numbers")
    parser.add_argument("--precision", default="int8", choices=("int4", "int8", "fp32"))
    parser.add_argument("--work", type=Path, default=TOOLS / ".work")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    (options.work / "meeting").unlink(missing_ok=True)
    check_split()
    kept = options.work / "tokenizer.json"
    if not kept.exists():
        make_tokenizer(options.seed, options.vocabulary).save(str(kept))
    tokenizer = Tokenizer.from_file(str(kept))
    net = make_net(options.seed, tokenizer)
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    print(f"{millions:.2f} million parameters, {options.steps} steps", flush=True)
    try:
        multiprocessing.start_processes(worker, (options,), nprocs=WORKERS, start_method="spawn")
    except (KeyboardInterrupt, multiprocessing.ProcessExitedException):
        sys.exit("Stopped. The same command goes on from the last checkpoint.")
    learner = Learner.of(net)
    learner.resume(options.work / CHECKPOINT, options.steps)
    doubt(learner.mean.module, Encoder(tokenizer))
    export(learner.mean.module, tokenizer, options.precision, options.work, options.out)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
