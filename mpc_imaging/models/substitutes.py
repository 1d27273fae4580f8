"""What torch offers and shares do not: the reason, and what to write instead, by the name of the module or function."""

from __future__ import annotations

from mpc_imaging.models.problems import CannotRunSecurely, LayerProblem, NotBuiltYet

_Entry = tuple[type[LayerProblem], str, str]


def _entries(names: str, kind: type[LayerProblem], reason: str, substitute: str) -> dict[str, _Entry]:
    return dict.fromkeys(names.split(), (kind, reason, substitute))


# Names are in lower case without underscores, so that nn.LayerNorm and F.layer_norm share an entry.
_KNOWN: dict[str, _Entry] = {
    **_entries(
        "gelu silu mish elu selu celu softplus hardswish logsigmoid softsign tanhshrink softshrink hardshrink glu "
        "threshold",
        NotBuiltYet, "there is no protocol for this activation", "replace {it} by nn.ReLU",
    ),
    **_entries("prelu rrelu", NotBuiltYet, "its slope is not a public constant", "replace {it} by nn.LeakyReLU"),
    **_entries("hardsigmoid", NotBuiltYet, "there is no protocol for this activation", "replace {it} by nn.Sigmoid"),
    **_entries("softmin", NotBuiltYet, "only softmax is built", "replace {it} by nn.Softmax of the negative"),
    **_entries("softmax2d", NotBuiltYet, "only softmax with a dimension is built", "replace {it} by nn.Softmax(dim=1)"),
    **_entries(
        "layernorm groupnorm instancenorm instancenorm1d instancenorm2d localresponsenorm rmsnorm normalize",
        NotBuiltYet, "it needs an inverse square root of a secret",
        "replace {it} by nn.BatchNorm2d for inference, by nn.Identity for training",
    ),
    **_entries("batchnorm", NotBuiltYet, "its statistics are arguments of a function", "use the layer nn.BatchNorm2d"),
    **_entries(
        "multiheadattention scaleddotproductattention transformer transformerencoder transformerencoderlayer "
        "transformerdecoder transformerdecoderlayer shiftedwindowattention getrelativepositionbias patchmergingpad",
        NotBuiltYet, "attention has no protocol here", "use a convolutional model such as torchvision.models.resnet18",
    ),
    **_entries("lstm gru rnn lstmcell grucell rnncell", NotBuiltYet, "recurrence has no protocol here",
               "replace {it} by nn.Conv1d over time"),
    **_entries("embedding embeddingbag", CannotRunSecurely, "it looks up a table at a secret place",
               "replace {it} by nn.Linear over one-hot inputs"),
    **_entries(
        "conv3d convtranspose3d maxpool3d avgpool3d adaptiveavgpool3d adaptivemaxpool3d batchnorm3d constantpad3d",
        NotBuiltYet, "volumes have no protocol here", "replace {it} by its 2-d layer over slices, as model=slices",
    ),
    **_entries("adaptivemaxpool1d adaptivemaxpool2d fractionalmaxpool2d", NotBuiltYet, "its windows are not regular",
               "replace {it} by nn.MaxPool2d with a fixed kernel, or by nn.AdaptiveAvgPool2d"),
    **_entries("maxpool1dwithindices maxpool2dwithindices", NotBuiltYet, "the positions of maxima are secret",
               "leave return_indices out"),
    **_entries("lppool1d lppool2d", NotBuiltYet, "it needs roots of secrets", "replace {it} by nn.AvgPool2d"),
    **_entries("maxunpool1d maxunpool2d", NotBuiltYet, "it needs the secret positions of maxima",
               "replace {it} by nn.Upsample"),
    **_entries("argmax argmin topk sort argsort", NotBuiltYet, "it returns positions, which are secret",
               "leave it out: the policy can reveal predictions instead of logits"),
    **_entries("amax amin max min", NotBuiltYet, "a maximum over a dimension is not built",
               "use nn.MaxPool2d over the whole image"),
    **_entries("maximum", NotBuiltYet, "a maximum of two tensors is not built", "write b + F.relu(a - b)"),
    **_entries("minimum", NotBuiltYet, "a minimum of two tensors is not built", "write a - F.relu(a - b)"),
    **_entries("abs absolute", NotBuiltYet, "there is no protocol for it", "write F.relu(x) + F.relu(-x)"),
    **_entries(
        "gt lt ge le eq ne greater less and or xor not invert where maskedfill sign heaviside round floor ceil trunc "
        "floordiv mod remainder",
        NotBuiltYet, "comparisons and masks are not built by themselves", "write it with F.relu or torch.clamp",
    ),
    **_entries("exp expm1", NotBuiltYet, "there is no protocol for it", "use torch.sigmoid or F.softmax"),
    **_entries("log log1p logsumexp", NotBuiltYet, "there is no protocol for it", "use F.log_softmax"),
    **_entries("sqrt rsqrt reciprocal norm vectornorm var std", NotBuiltYet, "it needs a root or inverse of a secret",
               "multiply by a fixed parameter instead"),
    **_entries(
        "item tolist numpy nonzero argwhere unique maskedselect isnan isinf any all allclose equal bincount bool",
        CannotRunSecurely, "it would open a secret, or its shape depends on one", "decide it outside of the model",
    ),
    **_entries("rand randn randint randlike randnlike bernoulli normal multinomial randperm", NotBuiltYet,
               "the parties have no common noise", "leave the noise out"),
    **_entries("zeros ones full empty arange eye tensor zeroslike oneslike newzeros newones linspace", NotBuiltYet,
               "it makes a tensor within forward()", "make it once in __init__, with register_buffer"),
    **_entries("expand expandas repeat tile broadcastto repeatinterleave", NotBuiltYet, "copying shares is not built",
               "rely on broadcasting, or use torch.cat or nn.Upsample"),
    **_entries("flip roll narrow select unbind indexselect gather take unfold fold", NotBuiltYet,
               "only slices with constant bounds are built", "slice with x[:, a:b] and join with torch.cat"),
    **_entries("pixelshuffle pixelunshuffle channelshuffle movedim moveaxis t", NotBuiltYet, "it is not built as such",
               "write it with reshape and permute"),
    **_entries("einsum tensordot outer inner dot addmm baddbmm kron", NotBuiltYet, "it is not built as such",
               "write it with torch.matmul"),
    **_entries(
        "reflectionpad1d reflectionpad2d replicationpad1d replicationpad2d circularpad1d circularpad2d",
        NotBuiltYet, "it pads with copies of values", "replace {it} by nn.ZeroPad2d",
    ),
    **_entries("to type typeas half double bfloat16 cuda cpu device dtype", NotBuiltYet,
               "shares have no such device or type", "leave it out"),
    **_entries("lazylinear lazyconv1d lazyconv2d lazybatchnorm1d lazybatchnorm2d", NotBuiltYet, "it has no shape yet",
               "give the sizes: nn.Linear, nn.Conv2d, nn.BatchNorm2d"),
    **_entries("dataparallel distributeddataparallel", NotBuiltYet, "it only wraps a model", "give its .module"),
}  # fmt: skip


def unsupported(it: str, name: str) -> LayerProblem:
    """Why ``it`` (as a user would write it: nn.GELU, torch.exp), a module or function called ``name``, cannot run."""
    key = name.lower().replace("_", "")
    if key.startswith("parametrized"):
        return NotBuiltYet("it is parametrized", "first bake it in: torch.nn.utils.parametrize.remove_parametrizations")
    kind, reason, substitute = _KNOWN.get(key) or (
        NotBuiltYet,
        "it has no secure version",
        "build it from convolution, linear, ReLU, pooling, add, multiply, concat and reshape",
    )
    return kind(reason, substitute.format(it=it))
