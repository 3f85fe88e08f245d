"""Ways to break devices.py, each of which tests/test_devices.py must notice."""

MUTANTS = [
    # the number format
    ("a T4 is given bf16", "capability >= (8, 0)", "capability >= (7, 0)"),
    ("an L4 is no Ampere", "capability >= (8, 0)", "capability > (8, 0)"),
    ("a P100 is given fp16", "capability >= (7, 0)", "capability >= (6, 0)"),
    (
        "the function that counts emulation is asked",
        "    capability = torch.cuda.get_device_capability(device)\n",
        "    capability = torch.cuda.get_device_capability(device)\n"
        "    if torch.cuda.is_bf16_supported():\n"
        '        return "bf16"\n',
    ),
    (
        "another card is asked",
        "torch.cuda.get_device_capability(device)",
        "torch.cuda.get_device_capability(None)",
    ),
    ("Apple's device computes in fp16", 'if device.type != "cuda":', 'if device.type == "cpu":'),
    (
        "Apple's device before a card",
        "if torch.cuda.is_available():\n        return",
        "if torch.cuda.is_available() and not torch.backends.mps.is_available():\n        return",
    ),
    (
        "always the first card",
        'torch.device("cuda", torch.cuda.current_device())\n    return torch.device("mps"',
        'torch.device("cuda", 0)\n    return torch.device("mps"',
    ),
    (
        "fp16 and bf16 exchanged",
        '"bf16": torch.bfloat16, "fp16": torch.float16',
        '"bf16": torch.float16, "fp16": torch.bfloat16',
    ),
    (
        "fp32 leaves an outer autocast on",
        "return torch.autocast(device.type, enabled=False)",
        "return torch.autocast(device.type, enabled=torch.is_autocast_enabled(device.type))",
    ),
    ("any precision accepted", "if precision not in PRECISIONS:", "if False:"),
    # the clock and the roofline
    ("the first run counts", "min(seconds[1:])", "min(seconds)"),
    ("the slowest run counts", "min(seconds[1:])", "max(seconds[1:])"),
    (
        "a card is not waited for",
        'if device.type != "cpu":\n            torch.acc',
        "if False:\n            torch.acc",
    ),
    ("multiply-adds counted once", "flops=2 * size**3", "flops=size**3"),
    ("only what is read counts", "bandwidth=2 * source.nbytes", "bandwidth=source.nbytes"),
    ("memory that nobody wrote is copied", "source = torch.ones(", "source = torch.zeros("),
    ("the format not used", ".to(PRECISIONS[precision])", ".float()"),
    (
        "the roof never reached",
        "min(self.flops, intensity * self.bandwidth)",
        "intensity * self.bandwidth",
    ),
    ("the higher bound", "min(self.flops, intensity", "max(self.flops, intensity"),
    ("an empty matrix measured", "if size < 1 or repeats < 1:", "if repeats < 1:"),
    ("no run at all", "if size < 1 or repeats < 1:", "if size < 1:"),
    # memory
    ("memory in another unit", "return 1024 * sizes[0]", "return 1000 * sizes[0]"),
    ("memory now instead of at most", '"VmHWM:"', '"VmRSS:"'),
    ("macOS counted in kilobytes", 'unit = 1 if sys.platform == "darwin" else 1024', "unit = 1024"),
    (
        "no number without resource",
        "except ImportError:\n        return 0",
        "except KeyError:\n        return 0",
    ),
    (
        "no layer recomputed",
        "for layer in blocks(model):\n        if",
        "for layer in blocks(model)[:0]:\n        if",
    ),
    ("layers wrapped again and again", 'if "forward" not in vars(layer):', "if True:"),
    (
        "dropout falls elsewhere the second time",
        "layer.forward, use_reentrant=False)",
        "layer.forward, use_reentrant=False, preserve_rng_state=False)",
    ),
    ("a model without layers taken", "if not blocks(model):", "if False:"),
    (
        "only the first list of layers",
        "return [layer for layers in lists for layer in layers]",
        "return [layer for layers in lists[:1] for layer in layers]",
    ),
    # processes
    ("the last process is the first", "return self.rank == 0", "return self.rank == self.size - 1"),
    ("any rank accepted", "if not 0 <= self.rank < self.size:", "if not 0 <= self.rank:"),
    (
        "a second group begun inside the first",
        " and dist.is_available() and not dist.is_initialized()\n",
        " and dist.is_available()\n",
    ),
    (
        "the inner one ends the group",
        "        if starts:\n            time.sleep",
        "        if _many():\n            time.sleep",
    ),
    (
        "the group never ends",
        "        if starts:\n            time.sleep",
        "        if False:\n            time.sleep",
    ),
    ("local rank ignored", 'int(os.environ.get("LOCAL_RANK", 0))', "0"),
    (
        "the card asked for ignored",
        "torch.cuda.current_device() if chosen.index is None else chosen.index",
        "torch.cuda.current_device()",
    ),
    ("the chosen card not made current", "        torch.cuda.set_device(chosen)\n", ""),
    ("gloo for cards", '"nccl" if chosen.type == "cuda" else "gloo"', '"gloo"'),
    ("processes share Apple's device", "elif starts and device is None:", "elif False:"),
    (
        "joined forgets who it is",
        "(dist.get_rank(), dist.get_world_size()) if _many() else (0, 1)",
        "(0, 1)",
    ),
    (
        "torch without distributed not known",
        "return dist.is_available() and dist.is_initialized()",
        "return dist.is_initialized()",
    ),
    ("any sharding accepted", 'if sharding not in ("ddp", "fsdp"):', "if False:"),
    (
        "a model alone stays where it is",
        "return model.to(place.device)\n    if",
        "return model\n    if",
    ),
    ("shares of everything are copies", 'if sharding == "ddp":', "if True:"),
    ("each begins with its own weights", "dist.broadcast(x.detach(), src=0)", "pass"),
    (
        "layers that share are cut one by one",
        "if len(set(held)) == len(held) else (model,)",
        "if held else (model,)",
    ),
    ("all layers gathered at once", "for part in (*layers, model) if", "for part in (model,) if"),
    ("gradients never held back by DDP", "with model.no_sync():", "if True:"),
    ("gradients never held back by FSDP", "send(not hold)", "send(True)"),
    (
        "gradients held back for ever",
        "    finally:\n        send(True)",
        "    finally:\n        send(not hold)",
    ),
    ("nothing summed", "        dist.all_reduce(value)\n", "        pass\n"),
    # what must survive
    ("the others get it too", "keep = not _many() or dist.get_rank() == 0", "keep = True"),
    ("living tensors handed out", 'gathered.to("cpu", copy=True)', 'gathered.to("cpu")'),
    ("shares handed out", "gathered = whole(x.detach())", "gathered = x.detach()"),
    (
        "tied weights twice",
        "for n, x in weights.items() if n not in tied",
        "for n, x in weights.items()",
    ),
    (
        "names of the wrapped model",
        "return model if inner is None else _bare(inner)",
        "return model",
    ),
    ("compiled models not unwrapped", 'getattr(model, "_orig_mod", None)', "None"),
    (
        "moments not taken up",
        'optimizer.load_state_dict(optimizer.state_dict() | {"state": state})',
        "pass",
    ),
    (
        "moments of the caller used",
        "values = values.to(like.device, copy=True)",
        "values = values.to(like.device)",
    ),
    ("the count of the caller used", "        return values.clone()", "        return values"),
    ("gradients stay", "    optimizer.zero_grad()\n    names", "    names"),
    ("weights not loaded", '        fill(x, tensors["model"][name])', "        pass"),
    ("other names accepted", "    if odd:\n", "    if False:\n"),
    (
        "moments of other shapes accepted",
        "if name not in named or x.dim() and x.shape != named[name].shape:",
        "if name not in named:",
    ),
    (
        "values not dealt out",
        "return distribute_tensor(values, like.device_mesh, like.placements)",
        "return values",
    ),
    (
        "only this process's generator",
        "dist.all_gather(states, state.to(place.device))",
        "states = [state] * place.size",
    ),
    (
        "the cpu's generator not put back",
        '    torch.set_rng_state(states[f"cpu.{place.rank}"])\n',
        "",
    ),
    (
        "always the first generator",
        'torch.set_rng_state(states[f"cpu.{place.rank}"])',
        'torch.set_rng_state(states["cpu.0"])',
    ),
    (
        "a card's generator not kept",
        '    if place.device.type == "cuda":\n        mine',
        "    if False:\n        mine",
    ),
    ("Apple's generator not put back", "        torch.mps.set_rng_state(state)", "        pass"),
    # the stop
    (
        "a second signal waits too",
        "            if self.number:\n                raise KeyboardInterrupt\n",
        "",
    ),
    ("a polite kill not heard", "[signal.SIGINT, signal.SIGTERM]", "[signal.SIGINT]"),
    (
        "a signal heard that is ignored",
        "if main and number and signal.getsignal(number) == signal.SIG_DFL",
        "if main and number",
    ),
    (
        "moments in the order of the file",
        "in sorted(moments[name].items())",
        "in moments[name].items()",
    ),
    ("Ctrl-C not heard", "[signal.SIGINT, signal.SIGTERM]", "[signal.SIGTERM]"),
    ("handlers not put back", "signal.signal(number, handler or signal.SIG_DFL)", "pass"),
    (
        "default handlers put back",
        "signal.signal(number, handler or signal.SIG_DFL)",
        "signal.signal(number, signal.SIG_DFL)",
    ),
    ("other threads listen", "threading.current_thread() is threading.main_thread()", "True"),
    (
        "an old signal counts again",
        '        """Note signals while the context lasts."""\n        self.number = 0\n',
        '        """Note signals while the context lasts."""\n',
    ),
    (
        "the signal is forgotten",
        "            self.number = number\n",
        "            self.number = 0\n",
    ),
]
