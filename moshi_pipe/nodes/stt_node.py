"""Node ``stt``: a second model, which writes down what the user says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moshi_pipe.errors import ConfigError
from moshi_pipe.graph.format import Audio, Text
from moshi_pipe.graph.node import BatchedNode, SessionSettings, TextReader, Tick, Value
from moshi_pipe.models.checkpoint import TOKENIZER, ModelOptions, open_checkpoint, read_specs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from moshi_pipe.engine.stages import EncodeStage, LMStage
    from moshi_pipe.models.spec import CodecSpec
    from moshi_pipe.nodes.options import SttOptions


class SttNode(BatchedNode):
    """Audio to text by a model of its own, with a codec of its own: ports ``audio`` and ``text``.

    It chooses the likeliest token each time, on PyTorch. Text lags the sound by the model's delay.

    Raises:
        ConfigError: The model does not write down what it hears, or hears at another rate.
    """

    def __init__(self, options: SttOptions) -> None:
        self.options = options
        self._model = ModelOptions(
            name=options.name,
            repo=options.repo,
            revision=options.revision,
            path=options.path,
            offline=options.offline,
        )
        self._encode: EncodeStage | None = None
        self._lm: LMStage | None = None
        self._device: Any = None

    def fit(self, codec: CodecSpec) -> None:
        """Set the ports, from the model's numbers alone."""
        config, mimi = read_specs(self._model)
        own = mimi.codec
        if config.model_type != "stt" or config.lm is None:
            raise ConfigError(
                f"model '{self.options.name}' writes down nothing that it hears",
                got=f"a model of kind {config.model_type}",
                fix="set graph.nodes.stt.options.repo=kyutai/stt-1b-en_fr, or path=FOLDER",
            )
        wanted = (codec.sample_rate, codec.frame_size, codec.channels)
        if (own.sample_rate, own.frame_size, own.channels) != wanted:
            raise ConfigError(
                f"model '{self.options.name}' hears other frames than the model that answers",
                got=f"{own.sample_rate} Hz, {own.frame_size} samples a frame",
                wanted=f"{codec.sample_rate} Hz, {codec.frame_size} samples a frame",
            )
        self.inputs = {"audio": Audio(*wanted)}
        self.outputs = {"text": Text(config.lm.text_cardinality, own.frame_rate)}

    def readers(self) -> dict[str, TextReader]:
        """Its tokenizer and its delay."""
        from moshi_pipe.models.tokenizer import SentencePieceTokenizer

        found = open_checkpoint(self._model, parts=[TOKENIZER])
        if found.tokenizer is None:
            return {}
        delay_s = float(found.config.stt_config.get("audio_delay_seconds", 0.0))
        return {"text": TextReader(SentencePieceTokenizer(found.tokenizer), delay_s)}

    def files(self) -> Sequence[Path]:
        """Its weights and its tokenizer."""
        found = open_checkpoint(self._model)
        paths = (found.lm_weights, found.mimi_weights, found.tokenizer)
        return [path for path in paths if path is not None]

    def open(self, num_slots: int) -> None:
        """Load the model and warm up."""
        from moshi_pipe.engine.stages import EncodeStage, LMStage
        from moshi_pipe.nn import backend

        device = backend.choose_device(self.options.device)
        options = backend.TorchOptions(device, backend.choose_dtype(self.options.dtype, device))
        checkpoint = open_checkpoint(self._model)
        checkpoint.check()
        self._device = device
        codec = backend.open_codec(checkpoint, options)
        self._encode = EncodeStage(codec)
        lm = backend.open_lm(checkpoint, options)
        self._lm = LMStage(lm, frame_rate=codec.spec.frame_rate, max_candidates=1)
        self._encode.open(num_slots)
        self._lm.open(num_slots)

    def join(self, slot: int, settings: SessionSettings) -> None:
        """Begin a session."""
        encode, lm = self._stages()
        encode.join(slot, settings)
        lm.join(slot, _greedy(settings))

    def leave(self, slot: int) -> None:
        """End a session."""
        for stage in self._stages():
            stage.leave(slot)

    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        """Listen to one frame of every slot that has one."""
        encode, lm = self._stages()
        audio = inputs["audio"]
        heard = Tick(tick.n, tick.active & audio.valid, tick.end_codes & False)  # it is told no end
        moved = Value(audio.tensor.to(self._device), audio.valid)
        codes = encode.step({"audio": moved}, heard)["codes"]
        return lm.step({"user_codes": codes}, heard)

    def failed(self) -> Sequence[int]:
        """Slots whose logits were not finite."""
        return self._stages()[1].failed()

    @property
    def can_snapshot(self) -> bool:
        """Whether both stages can."""
        return all(stage.can_snapshot for stage in self._stages())

    def snapshot(self, slot: int) -> dict[str, Any]:
        """Copy what both stages remember."""
        encode, lm = self._stages()
        return {"encode": encode.snapshot(slot), "lm": lm.snapshot(slot)}

    def restore(self, slot: int, snapshot: Mapping[str, Any], settings: SessionSettings) -> None:
        """Go on with a session."""
        encode, lm = self._stages()
        encode.restore(slot, snapshot["encode"], settings)
        lm.restore(slot, snapshot["lm"], _greedy(settings))

    def close(self) -> None:
        """Let the model go."""
        for stage in (self._encode, self._lm):
            if stage is not None:
                stage.close()
        self._encode = self._lm = None

    def _stages(self) -> tuple[EncodeStage, LMStage]:
        if self._encode is None or self._lm is None:
            raise RuntimeError("the node is not open")
        return self._encode, self._lm


def _greedy(settings: SessionSettings) -> SessionSettings:
    """Settings of the session as this model has them."""
    return replace(
        settings,
        temperature=0.0,
        text_temperature=0.0,
        top_k=1,
        text_top_k=1,
        guidance=1.0,
        repetition_penalty=1.0,
        conditions={},
    )
