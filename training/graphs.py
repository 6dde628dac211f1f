"""Replay a training step's forward and backward as one CUDA graph.

Small models are bound by kernel launches, not by arithmetic (measured in docs/LOG.md); a graph
removes the launches. The step must have fixed shapes and write gradients in place.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


class GraphedStep:
    """Callable ``inputs -> loss`` that leaves gradients in ``parameters``; zero if not finite.

    On the CPU, or if the step cannot be captured, it runs eagerly with the same result.

    Args:
        loss_fn: maps named tensors to a scalar loss; no data-dependent control flow.
        parameters: parameters that receive gradients.
        use_graph: capture on CUDA; False always runs eagerly.
    """

    WARMUP = 3

    def __init__(
        self,
        loss_fn: Callable[[Mapping[str, Tensor]], Tensor],
        parameters: list[nn.Parameter],
        *,
        use_graph: bool = True,
    ) -> None:
        self.loss_fn, self.parameters, self.use_graph = loss_fn, parameters, use_graph
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: dict[str, Tensor] = {}
        self._loss: Tensor | None = None

    @property
    def is_graphed(self) -> bool:
        """Whether a capture is in use."""
        return self._graph is not None

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Compute the loss [] and set ``.grad`` of the parameters."""
        if self.use_graph and self._graph is None and next(iter(inputs.values())).is_cuda:
            self._capture(inputs)
        if self._graph is None:
            return self._eager(inputs)
        for name, value in inputs.items():
            self._inputs[name].copy_(value)
        self._graph.replay()
        assert self._loss is not None
        return self._loss.detach()

    def _eager(self, inputs: Mapping[str, Tensor]) -> Tensor:
        for p in self.parameters:
            if p.grad is not None:
                p.grad.zero_()
        loss = self.loss_fn(inputs)
        loss.backward()
        self._drop_non_finite()
        return loss.detach()

    @torch.no_grad()
    def _drop_non_finite(self) -> None:
        """Zero all gradients if any is not finite: one bad batch must not end a training.

        Without a copy to the host, so that it can be captured.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        is_finite = torch.stack(torch._foreach_norm(gradients)).isfinite().all()
        for gradient in gradients:
            gradient.copy_(torch.where(is_finite, gradient, 0.0))

    def _capture(self, inputs: Mapping[str, Tensor]) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARMUP):
                self._eager(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._loss = self._eager(self._inputs)
        except RuntimeError:
            # An operation that synchronises cannot be captured; the eager step is the same step.
            self.use_graph = False
            torch.cuda.synchronize()
            return
        self._graph = graph
