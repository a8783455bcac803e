"""The rules of fusion: their parameters, and what they compute, against PyTorch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from configs import base, fusion
from jaxcifar.engine.fusion import RULES, adaptive_rates, make_module
from jaxcifar.engine.head import Head, Module
from jaxcifar.models import build
from jaxcifar.runs.resolve import finalize


def head_config(rule: str, members: int = 4, **changes):
    """A config whose head can be made."""
    c = base.get_config()
    c.members, c.fusion.rule = members, rule
    c.update_from_flattened_dict({f'fusion.{field}': value for field, value in changes.items()})
    return c


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(('rule', 'parameters'), [
    ('multiplicative', 2_107_392),
    ('multiplicativeAddition', 2_107_396),
    ('TransformerBase', 6_305_792),
    ('concatenation', 5_253_120),
])  # fmt: skip
def test_parameters_are_those_of_the_definition(rule, parameters):
    params = make_module(head_config(rule), [1024] * 4, 100).init((0,))
    assert (count(params['fusion']), count(params['global_head'])) == (parameters, 102_500)
    if rule == 'multiplicative':
        assert 4 * count(build('densenet121', 100).shapes()['params']) + count(params) == 30_404_596


class Reference(nn.Module):
    """The rules as they are written, by PyTorch's own layers."""

    def __init__(self, rule: str, members: int, width: int, heads: int, classes: int):
        super().__init__()
        self.rule = rule
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(members))
        self.a = nn.Parameter(torch.ones(members))
        self.attention = nn.MultiheadAttention(width, heads)
        wide = members * width if rule == 'concatenation' else width
        self.mlp = nn.Sequential(nn.Linear(wide, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, width))
        self.head = nn.Linear(width, classes)

    def forward(self, features):
        n = torch.stack([norm(f) for norm, f in zip(self.norms, features)])
        product = n.prod(0)
        x = {
            'multiplicative': lambda: product,
            'multiplicativeAddition': lambda: product + (self.a.softmax(0)[:, None, None] * n).sum(0),
            'TransformerBase': lambda: self.attention(n, n, n)[0].mean(0),
            'concatenation': lambda: torch.cat(list(n), 1),
        }[self.rule]()
        return self.head(self.mlp(x))


def copy_linear(layer, params):
    layer.weight.copy_(torch.tensor(params['kernel'].T))
    layer.bias.copy_(torch.tensor(params['bias']))


@pytest.mark.parametrize('rule', RULES)
def test_a_rule_is_what_pytorch_makes_of_it(rule):
    """Values and gradients, with K=3 and parameters that are nowhere at their beginnings."""
    head = make_module(head_config(rule, 3, heads=2), [8] * 3, 5)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + rng.normal(0, 0.3, p.shape).astype(np.float32), head.init((0,)))
    features = rng.normal(0, 2, (3, 6, 8)).astype(np.float32)
    slope = rng.normal(size=(6, 5)).astype(np.float32)
    reference, f = Reference(rule, 3, 8, 2, 5).eval(), params['fusion']
    with torch.no_grad():
        for k, norm in enumerate(reference.norms):
            norm.weight.copy_(torch.tensor(f[f'norm{k}']['scale']))
            norm.bias.copy_(torch.tensor(f[f'norm{k}']['bias']))
        copy_linear(reference.mlp[0], f['fc1'])
        copy_linear(reference.mlp[3], f['fc2'])
        copy_linear(reference.head, params['global_head'])
        if rule == 'multiplicativeAddition':
            reference.a.copy_(torch.tensor(f['scale']))
        if rule == 'TransformerBase':
            reference.attention.in_proj_weight.copy_(torch.tensor(f['in_proj']['kernel'].T))
            reference.attention.in_proj_bias.copy_(torch.tensor(f['in_proj']['bias']))
            copy_linear(reference.attention.out_proj, f['out_proj'])
    theirs = torch.tensor(features, requires_grad=True)
    expected = reference(theirs)
    expected.backward(torch.tensor(slope))

    @jax.jit
    def run(features):
        fuse = partial(head.apply, params, jnp.zeros((3, 6, 5)))
        ours, pullback = jax.vjp(fuse, list(features))
        return ours, pullback(jnp.array(slope))[0], fuse(list(features), jax.random.key(0))

    ours, gradients, dropped = run(features)
    np.testing.assert_allclose(ours, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(gradients, theirs.grad, atol=1e-5)
    assert np.abs(dropped - ours).max() > 1e-2


def test_a_residual_head_begins_as_the_mean_of_the_members():
    head = make_module(head_config('multiplicative', 2, residual=True), [8] * 2, 5)
    logits = np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32)
    fused = head.apply(head.init((0,)), logits, [np.ones((6, 8), np.float32)] * 2)
    np.testing.assert_allclose(fused, logits.mean(0), rtol=1e-6)


@pytest.mark.parametrize(('rule', 'width', 'rates'), [
    ('multiplicative', 1024, (7e-5, 4e-4)),  # DenseNet-121
    ('multiplicativeAddition', 512, (1e-4, 1e-3)),  # ResNet-18
    ('TransformerBase', 640, (4e-5, 2e-4)),  # WRN-28-10
    ('concatenation', 1024, (7e-5, 8e-4)),  # ResNeXt-29
    ('multiplicative', 64, (1.43e-4, 6e-4)),
])  # fmt: skip
def test_learning_rates_by_rule_and_features(rule, width, rates):
    assert adaptive_rates(rule, width) == pytest.approx(rates)


def test_learning_rates_are_filled_in_for_the_network_and_only_where_unset():
    c = finalize(fusion.get_config('densenet121,multiplicative'))
    assert [c.optimizer.lr, c.fusion.lr, c.fusion.lr_head] == pytest.approx([7e-5, 4e-4, 4e-4])
    c = fusion.get_config('wideresnet28_10,TransformerBase')
    c.fusion.lr, c.network = 0.5, 'resnet18'
    c = finalize(c)
    assert [c.optimizer.lr, c.fusion.lr, c.fusion.lr_head] == pytest.approx([4e-5, 0.5, 0.5])


def test_the_head_is_updated_as_by_pytorch():
    """Two groups with learning rates of their own, one clip over both, Nesterov momentum and decay."""
    c = base.get_config()
    rng = np.random.default_rng(0)
    params = {part: {'kernel': rng.normal(size=(3, 2))} for part in ('fusion', 'global_head')}
    theirs = [torch.tensor(p['kernel'], requires_grad=True) for p in params.values()]
    groups = [{'params': [p], 'lr': lr} for p, lr in zip(theirs, (0.1, 0.4))]
    sgd = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=1e-4)
    with jax.enable_x64(True):
        head = Head(c, Module(None, None))
        state, advance = head.start(params), jax.jit(head.advance)
        for _ in range(3):
            grads = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
            for p, g in zip(theirs, grads.values()):
                p.grad = torch.tensor(g['kernel'])
            nn.utils.clip_grad_norm_(theirs, c.fusion.clip)
            sgd.step()
            state = advance(state, grads, jnp.array([0.1, 0.4]), 0)
    for ours, p in zip(state.params.values(), theirs):
        np.testing.assert_allclose(ours['kernel'], p.detach(), rtol=1e-5)
