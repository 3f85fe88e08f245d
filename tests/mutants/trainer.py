"""Ways to break trainer.py, each of which tests/test_trainer.py must notice."""

MUTANTS = [
    # the config and the optimizer
    ("a warmup longer than the training accepted", "not 0 <= self.warmup <= self.n_steps", "False"),
    (
        "patience without validations accepted",
        "if self.patience is not None and self.validate_every is None:",
        "if False:",
    ),
    ("vectors decay too", "(vectors, 0.0)", "(vectors, config.weight_decay)"),
    ("epsilon forgotten", "betas=betas, eps=config.epsilon, fused", "betas=betas, fused"),
    # a step
    (
        "the schedule one step late",
        "self.step + 1, config.warmup, config.n_steps",
        "self.step, config.warmup, config.n_steps",
    ),
    (
        "gradients never cleared",
        "self.scaler.update()\n        self.optimizer.zero_grad()",
        "self.scaler.update()",
    ),
    (
        "gradients not clipped",
        "limit = math.inf if config.max_norm is None else config.max_norm",
        "limit = math.inf",
    ),
    ("clipped while scaled", "self.scaler.unscale_(self.optimizer)\n", "pass\n"),
    ("the average not moved", "self.average.update(self.bare)", "pass"),
    (
        "each part divided by its own tokens",
        "self.config.smoothing) / batch.n_tokens",
        "self.config.smoothing) / max(1, rows.n_tokens)",
    ),
    ("only the last part's loss", "total[0] += loss.detach()", "total[0] = loss.detach()"),
    ("labels not smoothed", "rows, self.config.smoothing) /", "rows, 0.0) /"),
    (
        "every number format is fp32",
        "with autocast(self.place.device, self.precision):\n                    loss",
        "with nullcontext():\n                    loss",
    ),
    ("fp16 without a scaler", 'enabled=self.precision == "fp16"', "enabled=False"),
    # what is not finite
    ("a loss of nan is used", 'self._refuse_unless_finite("loss", loss, rate)', "pass"),
    (
        "a gradient of nan is used",
        'self._refuse_unless_finite("gradient norm", norm, rate)',
        "pass",
    ),
    # validation
    (
        "a mean of means",
        "sum(batch.n_tokens for batch in self.validation)",
        "len(self.validation)",
    ),
    ("an equal validation counts as better", "if loss < self.best:", "if loss <= self.best:"),
    (
        "dropout while validating",
        "self.model.eval()\n        with self.average",
        "pass\n        with self.average",
    ),
    (
        "evaluating ever after",
        "        self.model.train()\n        # Summed",
        "        # Summed",
    ),
    (
        "labels smoothed while validating",
        "self.loss(self.model, rows, 0.0)",
        "self.loss(self.model, rows, self.config.smoothing)",
    ),
    (
        "the weights validated, not their average",
        "self.average.applied(self.bare) if self.average else",
        "nullcontext() if self.average else",
    ),
    ("validation wherever fit ends", "self.step == n_steps):", "self.step == end):"),
    ("patience one validation too long", ">= patience * every", "> patience * every"),
    ("the best not kept", 'keep=[folder / f"step-{self.best_step:08d}"]', "keep=[]"),
    ("the best not saved", "best or due or stopping", "due or stopping"),
    # stopping and going on
    ("a stop is not saved", "best or due or stopping", "best or due"),
    ("generators not restored", 'set_random_state(self.place, tensors["random"])', "pass"),
    ("the place in the data forgotten", 'self.data.load_state_dict(state["data"])', "pass"),
    ("the average forgotten", 'fill(value, tensors["average"][name])', "pass"),
    ("the average counts anew", 'self.average.n_updates = state["average"]', "pass"),
    ("the best forgotten", "self.best = math.inf if best is None else best", "pass"),
    ("the log not cut back", "forget_records(self.folder / LOG, after=self.step)", "pass"),
    (
        "seeded again on going on",
        "if self.step == 0:\n            torch.manual_seed",
        "if True:\n            torch.manual_seed",
    ),
    ("the folder of another taken", "if found and not self._may_write:", "if False:"),
    ("another training taken up", "        if other:\n", "        if False:\n"),
    (
        "no good checkpoint passes for none",
        "if found := checkpoints(folder):",
        "if found := []:",
    ),
    ("fp16 skips for ever", "if self._n_skipped == _MOST_SKIPPED:", "if False:"),
    (
        "skipped steps never forgotten",
        "0 if math.isfinite(norm) else",
        "self._n_skipped if math.isfinite(norm) else",
    ),
    ("a gradient of one process too small", "scale(loss * size)", "scale(loss)"),
    ("no trial batch", "if trial is not None:", "if False:"),
    (
        "other data taken up",
        'saved["data.fingerprint"] = state["fingerprint"]',
        'saved["data.fingerprint"] = self._fingerprint',
    ),
    ("other schedules taken up", "if step == 0 or len(rates) == 1:", "if True:"),
    ("the folder not locked", "stack.enter_context(locked_folder(self.folder))", "pass"),
    ("the scaler forgotten", 'self.scaler.load_state_dict(state["scaler"])', "pass"),
    # timing and telling
    ("timing moves the data on", "self.data.load_state_dict(position)", "pass"),
    ("timing draws dropout", "set_random_state(self.place, generators)", "pass"),
    ("timing moves buffers", "buffer.copy_(before)", "pass"),
    ("the warm-up counted", "sum(seconds[1:]) / 3", "sum(seconds)"),
    ("the listener is not told", "self.log(record)", "pass"),
    (
        "every process speaks",
        "if self.place.is_first:\n            many",
        "if True:\n            many",
    ),
    ("a signal without its number", "raise SystemExit(128 + number)", "raise SystemExit(1)"),
    ("torchrun not noticed", "if n_processes > 1:", "if False:"),
    ("the step to TensorBoard", 'if name != "step":', "if True:"),
]
