import pytest
import torch
import torch.nn.functional as F

from repertory.systems.bake import BAKELoss, distillation_loss, soft_targets
from repertory.systems.bake.losses import affinity, propagate, tempered


@pytest.fixture
def batch():
    draws = torch.Generator().manual_seed(0)
    return torch.randn(24, 16, generator=draws), 3 * torch.randn(24, 10, generator=draws)


@pytest.mark.parametrize("omega", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_soft_targets_are_distributions(batch, omega):
    targets = soft_targets(*batch, omega=omega)
    assert targets.min() >= 0
    torch.testing.assert_close(targets.sum(1), torch.ones(24), rtol=0, atol=2e-5)


def test_affinity_is_a_distribution_over_the_others(batch):
    rows = affinity(batch[0])
    assert torch.equal(rows.diagonal(), torch.zeros(24))
    torch.testing.assert_close(rows.sum(1), torch.ones(24))
    off = rows[~torch.eye(24, dtype=torch.bool)].view(24, 23)
    assert (off.amax(1) / off.amin(1)).max() <= torch.e**2  # cosines, without temperature


def test_soft_targets_are_the_fixed_point_of_the_propagation(batch):
    features, logits = (x.double() for x in batch)
    for omega in (0.5, 0.9):
        own, spread = tempered(logits, 4.0), affinity(features)
        state = own
        for _ in range(400):
            state = omega * spread @ state + (1 - omega) * own
        torch.testing.assert_close(soft_targets(features, logits, 4.0, omega), state, rtol=0, atol=1e-12)


def test_propagating_the_identity_gives_the_explicit_inverse(batch):
    spread = affinity(batch[0].double())
    expected = 0.1 * torch.linalg.inv(torch.eye(24).double() - 0.9 * spread)
    torch.testing.assert_close(propagate(spread, torch.eye(24), 0.9), expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradient_is_prediction_minus_target(batch, temperature):
    features, logits = batch[0].requires_grad_(), batch[1].requires_grad_()
    BAKELoss(temperature, 0.5)(features, logits).backward()
    targets = soft_targets(features, logits, temperature, 0.5)
    expected = temperature / 24 * ((logits / temperature).softmax(1) - targets)
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-7)
    assert features.grad is None
    assert logits.grad.abs().max() > 1e-4


def test_value_is_the_divergence_times_squared_temperature(batch):
    targets = soft_targets(*batch, 4.0, 0.5)
    kl = F.kl_div((batch[1] / 4).log_softmax(1), targets, reduction="batchmean")
    torch.testing.assert_close(distillation_loss(batch[1], targets, 4.0), 16 * kl, rtol=1e-5, atol=0)
    torch.testing.assert_close(BAKELoss(4.0, 0.5, weight=0.3)(*batch), 0.3 * 16 * kl, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_no_omega_means_no_gradient_at_all(batch, dtype):
    features, logits = batch[0].to(dtype), batch[1].to(dtype).requires_grad_()
    loss = BAKELoss(omega=0.0)(features, logits)
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert abs(loss.item()) < 1e-5


def test_autocast_changes_nothing(batch):
    expected = BAKELoss()(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = BAKELoss()(*batch)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_half_precision_input_is_computed_in_float32():
    draws = torch.Generator().manual_seed(1)
    features, logits = torch.randn(8, 4, generator=draws).half(), 100 * torch.randn(8, 5, generator=draws).half()
    targets = soft_targets(300 * features, logits)  # norms that float16 cannot square
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets, soft_targets(features.float(), logits.float()), rtol=1e-3, atol=1e-4)


def test_zero_features_are_similar_to_all_alike(batch):
    features = batch[0].clone()
    features[3] = 0
    uniform = torch.full((24,), 1 / 23)
    uniform[3] = 0
    torch.testing.assert_close(affinity(features)[3], uniform)
    assert BAKELoss()(torch.zeros(24, 16), batch[1]).isfinite()


def test_loss_compiles_in_one_graph(batch):
    logits = batch[1].requires_grad_()
    bake = BAKELoss()
    compiled = torch.compile(bake, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch[0], logits), bake(batch[0], logits))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, z: soft_targets(f[:1], z[:1]), "the batch has 1 sample"),
        (lambda f, z: soft_targets(f, z, omega=1.0), "omega is 1.0; it must be at least 0 and below 1"),
        (lambda f, z: soft_targets(f, z, omega=-0.1), "omega is -0.1"),
        (lambda f, z: soft_targets(f, z, omega=float("nan")), "omega is nan"),
        (lambda f, z: soft_targets(f, z, temperature=0.0), "temperature is 0"),
        (lambda f, z: soft_targets(f[:-1], z), r"features are \(23, 16\) and logits \(24, 10\)"),
        (lambda f, z: affinity(f[None]), "pooled"),
        (lambda f, z: distillation_loss(z, z[:, :3]), "targets are"),
        (lambda f, z: BAKELoss(omega=1.0), "omega is 1.0"),
        (lambda f, z: BAKELoss(temperature=-1.0), "temperature is -1"),
        (lambda f, z: BAKELoss(weight=-1.0), "weight is -1"),
    ],
)
def test_bad_input_meets_a_sentence(batch, call, message):
    with pytest.raises(ValueError, match=message):
        call(*batch)
