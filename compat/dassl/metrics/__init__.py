def compute_accuracy(output, target, topk=(1,)):
    """Top-k accuracies in percent, a list of tensors `[1]`.

    Args:
        output: scores `[B, C]`, or a tuple that begins with them.
        target: labels `[B]`.
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices  # [B, k]
    hits = ranked.eq(target[:, None]).float()
    return [100.0 * hits[:, :k].sum().reshape(1) / len(target) for k in topk]
