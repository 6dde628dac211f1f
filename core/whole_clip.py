"""Forward of the WAN VAE over a whole clip at once, for training and for small clips.

The published forward walks through a clip in chunks of one latent frame and carries a feature
cache from chunk to chunk. That bounds memory, but a small model then spends its time on small
kernels. Here every layer sees all frames, and a causal 3D convolution becomes one 2D convolution
over three frames stacked as channels. The weights and, up to rounding, the result are the same
(tests/training/test_whole_clip.py compares both).

Tensors are frame-major and channels-last: x [B, T, H, W, C].
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
)
from torch import Tensor, nn


def encode_moments(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Posterior mean and log-variance [B, 2 z_dim, T_lat, H/8, W/8] of clips [B, 3, T, H, W]."""
    encoder = vae.encoder
    x = _causal_conv(encoder.conv_in, video.permute(0, 2, 3, 4, 1))
    for layer in encoder.down_blocks:
        x = _layer(layer, x)
    x = _head(encoder, _middle(encoder.mid_block, x))
    return _causal_conv(vae.quant_conv, x).permute(0, 4, 1, 2, 3)


def decode(vae: AutoencoderKLWan, z_raw: Tensor) -> Tensor:
    """Clips [B, 3, T, H, W], not clamped, of raw latents [B, z_dim, T_lat, H/8, W/8]."""
    decoder = vae.decoder
    x = _causal_conv(vae.post_quant_conv, z_raw.permute(0, 2, 3, 4, 1))
    x = _middle(decoder.mid_block, _causal_conv(decoder.conv_in, x))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _residual(resnet, x)
        for resample in block.upsamplers or ():
            x = _resample(resample, x)
    return _head(decoder, x).permute(0, 4, 1, 2, 3)


def _layer(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, WanResidualBlock):
        return _residual(layer, x)
    if isinstance(layer, WanResample):
        return _resample(layer, x)
    return _attention(layer, x)


def _middle(block: Any, x: Tensor) -> Tensor:
    x = _residual(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _residual(resnet, _attention(attention, x))
    return x


def _head(module: nn.Module, x: Tensor) -> Tensor:
    return _causal_conv(module.conv_out, F.silu(_norm(module.norm_out, x)))


def _residual(block: WanResidualBlock, x: Tensor) -> Tensor:
    h = _causal_conv(block.conv1, F.silu(_norm(block.norm1, x)))
    h = _causal_conv(block.conv2, F.silu(_norm(block.norm2, h)))
    shortcut = block.conv_shortcut
    return h + (_causal_conv(shortcut, x) if isinstance(shortcut, WanCausalConv3d) else x)


def _attention(block: WanAttentionBlock, x: Tensor) -> Tensor:
    """Attention inside each frame, one head."""
    b, t, h, w, c = x.shape
    y = _norm(block.norm, x).reshape(b * t, 1, h * w, c)
    q, k, v = F.linear(y, block.to_qkv.weight[:, :, 0, 0], block.to_qkv.bias).chunk(3, dim=-1)
    y = F.scaled_dot_product_attention(q, k, v)
    y = F.linear(y, block.proj.weight[:, :, 0, 0], block.proj.bias)
    return x + y.view(b, t, h, w, c)


def _resample(layer: WanResample, x: Tensor) -> Tensor:
    """Halve or double; the first frame has no partner in time and passes the time step by."""
    if layer.mode == "upsample3d" and x.shape[1] > 1:
        b, t, h, w, c = x.shape
        pairs = _causal_conv(layer.time_conv, x[:, 1:]).view(b, t - 1, h, w, 2, c)
        later = pairs.permute(0, 1, 4, 2, 3, 5).reshape(b, 2 * (t - 1), h, w, c)
        x = torch.cat((x[:, :1], later), dim=1)
    if layer.mode.startswith("upsample"):
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        x = _conv(x, layer.resample[1].weight, layer.resample[1].bias, padding=1)
    else:
        x = F.pad(x, (0, 0, 0, 1, 0, 1))
        x = _conv(x, layer.resample[1].weight, layer.resample[1].bias, stride=2)
    if layer.mode == "downsample3d" and x.shape[1] > 1:
        weight = layer.time_conv.weight[..., 0, 0]
        triples = torch.cat((x[:, :-2:2], x[:, 1::2], x[:, 2::2]), dim=-1)
        later = F.linear(triples, _stack_taps(weight), layer.time_conv.bias)
        x = torch.cat((x[:, :1], later), dim=1)
    return x


def _norm(norm: WanRMS_norm, x: Tensor) -> Tensor:
    # The published norm divides by max(|x|, 1e-12), whose gradient explodes for a dead pixel.
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    normalised = F.normalize(wide, dim=-1, eps=1e-4) * (norm.scale * norm.gamma.flatten())
    return normalised.to(x.dtype)


def _causal_conv(conv: WanCausalConv3d, x: Tensor) -> Tensor:
    """Causal 3D convolution of stride 1 as a 2D convolution over stacked frames."""
    taps, num_frames = conv.weight.shape[2], x.shape[1]
    padding = conv.weight.shape[-1] // 2
    if taps == 1 or num_frames == 1:  # of a single frame only the last tap sees content
        return _conv(x, conv.weight[:, :, -1], conv.bias, padding=padding)
    padded = F.pad(x, (0, 0, 0, 0, 0, 0, taps - 1, 0))
    stacked = torch.cat([padded[:, k : k + num_frames] for k in range(taps)], dim=-1)
    return _conv(stacked, _stack_taps(conv.weight), conv.bias, padding=padding)


def _stack_taps(weight: Tensor) -> Tensor:
    """[O, I, K, ...] to [O, K I, ...], the order in which frames are stacked."""
    return weight.transpose(1, 2).flatten(1, 2)


def _conv(x: Tensor, weight: Tensor, bias: Tensor, *, padding: int = 0, stride: int = 1) -> Tensor:
    """2D convolution of every frame of x [B, T, H, W, C]."""
    frames = x.flatten(0, 1).permute(0, 3, 1, 2)  # channels-last memory
    weight = weight.contiguous(memory_format=torch.channels_last)
    y = F.conv2d(frames, weight, bias, stride=stride, padding=padding)
    return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
