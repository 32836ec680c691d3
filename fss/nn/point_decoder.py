"""SAM's mask decoder for many points of one image; it computes only what one mask for each point needs.

Up to rounding it is the function of segment_anything's MaskDecoder with one positive point a mask and
`multimask_output=False`, with two fifths of the multiplications:

- Attention between the 4096 cells of an image and the 7 tokens of a prompt never projects the cells. For each head the
  tokens are brought to the space of the cells instead (q . W k is (W' q) . k, and pooled values can be projected
  afterwards). The bias of a key adds the same number to all scores of a softmax and cancels.
- In the first layer all prompts see the same image.
- After the second layer only the token of the first mask is computed, and only its mask is made; the predicted quality
  of the masks is not.
- A transposed convolution whose stride is its kernel is a product with a matrix, cell by cell. So channels stay
  innermost, and only the mask is transposed.
"""

from math import sqrt

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F

AT_ONCE = {"cpu": 4}  # prompts: on a CPU, the cells of so many fit into the caches
AT_ONCE_ELSEWHERE = 64


def decode_points(decoder: MaskDecoder, image: Tensor, position: Tensor, prompts: Tensor) -> Tensor:
    """Compute the logits of the first mask of each prompt, [N, 4 h, 4 w].

    decoder: segment_anything's MaskDecoder. image: [1, C, h, w], the embedding with that of 'no mask' added. position:
    [1, C, h, w], the cells' positional encoding. prompts: [N, 2, C], of a point and of 'not a point'.
    """
    h, w = image.shape[2:]
    cells, place = (x.flatten(2).mT.contiguous() for x in (image, position))  # [1, h w, C]
    outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([outputs.expand(len(prompts), -1, -1), prompts], 1)  # [N, T, C]
    masks = [
        _decode(decoder, cells, place, part, (h, w))
        for part in tokens.split(AT_ONCE.get(image.device.type, AT_ONCE_ELSEWHERE))
    ]
    return torch.cat(masks)


def _decode(decoder: MaskDecoder, cells: Tensor, place: Tensor, prompt: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells and their places [1, P, C], tokens [N, T, C] -> logits [N, 4 h, 4 w]."""
    transformer = decoder.transformer
    tokens = prompt
    for layer in transformer.layers:
        asking = tokens if layer.skip_first_layer_pe else tokens + prompt
        attended = layer.self_attn(q=asking, k=asking, v=tokens)
        tokens = layer.norm1(attended if layer.skip_first_layer_pe else tokens + attended)
        placed = cells + place  # [1 or N, P, C]
        tokens = layer.norm2(tokens + gather(layer.cross_attn_token_to_image, tokens + prompt, placed, cells))
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        update = scatter(layer.cross_attn_image_to_token, placed, tokens + prompt, tokens)  # [N, P, C]
        cells = layer.norm4(cells + update)
    token, asking = tokens[:, 1:2], (tokens + prompt)[:, 1:2]  # of the first mask: [N, 1, C]
    token = token + gather(transformer.final_attn_token_to_image, asking, cells + place, cells)
    token = transformer.norm_final_attn(token)
    return _mask(decoder, cells, decoder.output_hypernetworks_mlps[0](token), size)


def gather(attention: Attention, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of tokens [N, T, C] to cells, keys and values [1 or N, P, C]: [N, T, C]."""
    heads = attention.num_heads
    query = _by_head(attention.q_proj(tokens), heads)  # [N, heads, T, d]
    query = query @ attention.k_proj.weight.unflatten(0, (heads, -1)) / sqrt(query.shape[-1])  # [N, heads, T, C]
    scores = product(query.flatten(1, 2), keys.mT)  # [N, heads T, P]
    pooled = product(scores.softmax(-1), values).unflatten(1, (heads, -1))  # [N, heads, T, C]
    taken = pooled @ attention.v_proj.weight.unflatten(0, (heads, -1)).mT  # [N, heads, T, d]
    return attention.out_proj(taken.transpose(1, 2).flatten(2) + attention.v_proj.bias)


def scatter(attention: Attention, cells: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of cells [1 or N, P, C] to tokens, keys and values [N, T, C]: [N, P, C]."""
    heads = attention.num_heads
    key = _by_head(attention.k_proj(keys), heads)  # [N, heads, T, d]
    key = key / sqrt(key.shape[-1])
    offset = key @ attention.q_proj.bias.unflatten(0, (heads, -1))[..., None]  # [N, heads, T, 1]
    key = key @ attention.q_proj.weight.unflatten(0, (heads, -1))  # [N, heads, T, C]
    scores = product(key.flatten(1, 2), cells.mT).unflatten(1, (heads, -1))  # [N, heads, T, P]
    shares = (scores + offset).softmax(2).flatten(1, 2)  # [N, heads T, P]
    value = _by_head(attention.v_proj(values), heads)  # [N, heads, T, d]
    value = value @ attention.out_proj.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)  # [N, heads, T, C]
    return shares.mT @ value.flatten(1, 2) + attention.out_proj.bias


def product(rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply [N, A, B] @ [1 or N, B, D] -> [N, A, D]; if all share the columns, by one product of matrices."""
    if len(columns) == 1:
        return (rows.flatten(0, 1) @ columns[0]).unflatten(0, rows.shape[:2])
    return rows @ columns


def _by_head(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)  # [N, T, heads d] -> [N, heads, T, d]


def _mask(decoder: MaskDecoder, cells: Tensor, kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Upscale cells [N, P, C] four times and multiply them by a kernel [N, 1, C / 8]: [N, 4 h, 4 w]."""
    (first, norm, act, second, last), (h, w) = decoder.output_upscaling, size
    x = _quarters(first, cells)  # [N, P, 2, 2, C/4]
    x = act(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    x = last(_quarters(second, x))  # [N, P, 2, 2, 2, 2, C/8]
    logits = x.flatten(1, -2) @ kernel.mT  # [N, 16 P, 1]
    grid = logits.view(len(logits), h, w, 2, 2, 2, 2)  # row, column, then row and column of each of the upscalings
    return grid.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(logits), 4 * h, 4 * w)


def _quarters(conv: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A transposed convolution of kernel and stride 2, channels last: [..., C] -> [..., 2, 2, C']."""
    weight = conv.weight.permute(0, 2, 3, 1)  # [C, 2, 2, C']
    return (x @ weight.flatten(1)).unflatten(-1, weight.shape[1:]) + conv.bias
