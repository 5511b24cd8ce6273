"""Makes the tokenizer of the mini model: a small byte-level BPE that knows the words of captions and spells the rest."""

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bench.mini.pictures import random_caption, random_scene
from janus_dola.models.families.janus_prompts import BEGIN_OF_IMAGE

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
IMAGE, END_OF_IMAGE = "<image_placeholder>", "<end_of_image>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ '<|User|>: ' }}{%- else -%}{{ '<|Assistant|>: ' }}{%- endif -%}"
    "{%- for part in message['content'] -%}{{ part['text'] | trim }}{%- endfor -%}"
    "{{ '\n\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|Assistant|>:' }}{%- endif -%}"
)


def build_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on captions."""
    rng = random.Random(seed)
    captions = [random_caption(random_scene(rng), rng) for _ in range(5000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [BOS, EOS, PAD, IMAGE, BEGIN_OF_IMAGE, END_OF_IMAGE, USER, ASSISTANT]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f": {text}\n\n:" for text in captions), trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos_id)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left",
        model_max_length=512,
        extra_special_tokens={"image_token": IMAGE, "boi_token": BEGIN_OF_IMAGE, "eoi_token": END_OF_IMAGE},
    )  # fmt: skip
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
