"""The vocabulary projection in chunks against the plain full matrix; float32 softmax whatever the model's dtype."""

import pytest
import torch

import pipeline.learning.policy
from pipeline.learning.forest import Forest
from pipeline.learning.policy import Policy, token_logprobs
from tests.support.policies import small_policy


@pytest.mark.parametrize("logits_in_memory", [1, 70, 10_000])  # one row a chunk, seven, all
def test_chunks_change_neither_values_nor_gradients(monkeypatch, logits_in_memory):
    monkeypatch.setattr(pipeline.learning.policy, "LOGITS_IN_MEMORY", logits_in_memory)
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 6, requires_grad=True), torch.randn(10, 6, requires_grad=True)
    targets, upstream = torch.randint(0, 10, (23,)), torch.randn(23)
    full = torch.log_softmax(hidden @ weight.T / 0.7, -1)
    whole = full[torch.arange(23), targets], -(full.exp() * full).sum(-1)
    chunked = token_logprobs(hidden, weight, targets, 0.7, train_entropy=True)
    for values, reference in zip(chunked, whole, strict=True):
        assert torch.allclose(values, reference, atol=1e-6)
        gradients = torch.autograd.grad(values @ upstream, [hidden, weight], retain_graph=True)
        expected = torch.autograd.grad(reference @ upstream, [hidden, weight], retain_graph=True)
        for gradient, other in zip(gradients, expected, strict=True):
            assert torch.allclose(gradient, other, atol=1e-5)


def test_the_entropy_has_a_gradient_only_if_it_is_trained():
    hidden, weight = torch.randn(5, 6, requires_grad=True), torch.randn(10, 6)
    logprobs, entropy = token_logprobs(hidden, weight, torch.arange(5), 1.0)
    assert logprobs.requires_grad and not entropy.requires_grad


def test_log_probs_of_a_bfloat16_model_are_not_rounded_to_bfloat16():
    torch.manual_seed(0)
    hidden, weight = torch.randn(200, 64).bfloat16(), (torch.randn(5000, 64) / 8).bfloat16()
    targets = torch.randint(0, 5000, (200,))
    exact = torch.log_softmax(hidden.double() @ weight.double().T, -1)[torch.arange(200), targets]
    logprobs, _ = token_logprobs(hidden, weight, targets, 1.0)
    assert logprobs.dtype == torch.float32
    assert (logprobs - exact).abs().mean() < 0.005


def test_the_weights_gradient_of_a_bfloat16_model_is_added_up_in_float32(monkeypatch):
    monkeypatch.setattr(pipeline.learning.policy, "LOGITS_IN_MEMORY", 50 * 8)  # eight rows a chunk, 250 chunks
    monkeypatch.setattr(pipeline.learning.policy, "PRODUCT_IN_MEMORY", 16 * 20)  # in three blocks
    torch.manual_seed(0)
    hidden, weight = torch.rand(2000, 16).bfloat16(), torch.randn(50, 16).bfloat16().requires_grad_()
    targets = torch.randint(0, 50, (2000,))
    token_logprobs(hidden, weight, targets, 1.0)[0].sum().backward()
    exact = weight.detach().double().requires_grad_()
    torch.log_softmax(hidden.double() @ exact.T, -1)[torch.arange(2000), targets].sum().backward()
    error = (weight.grad.double() - exact.grad).abs() / exact.grad.abs().max()
    assert weight.grad.dtype == torch.bfloat16
    assert error.max() < 2**-8  # the rounding of the sum; added up in bfloat16 it is off by a multiple


def test_checkpointed_activations_change_no_gradient_and_keep_less():
    """Of a model with three layers, for every number of them."""
    policy, tokens = small_policy("qwen2", num_hidden_layers=3), torch.arange(60)
    results = []
    for layers in (0, 1, 2, 3, 0):
        policy.checkpoint_activations(layers)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: (kept.append(t.nbytes), t)[1], lambda t: t):
            logprobs, _ = policy(tokens, tokens, tokens[:-1], tokens[1:], Forest((0, 60)))
        policy.zero_grad()
        logprobs.sum().backward()
        results.append((sum(kept), [parameter.grad.clone() for parameter in policy.parameters()]))
    whole, one, two, three, again = (size for size, _ in results)
    assert again == whole and whole - one == one - two == two - three > whole / 4
    for _, gradients in results:
        assert all(torch.equal(a, b) for a, b in zip(gradients, results[0][1], strict=True))


def test_more_layers_than_the_model_has_cannot_be_checkpointed():
    with pytest.raises(ValueError, match=r"learner\.checkpoint_layers=3, but the model has 2 layers"):
        small_policy("llama").checkpoint_activations(3)


def test_a_model_whose_logits_are_more_than_a_projection_is_refused(random_model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(random_model)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        Policy(model, temperature=1.0)
