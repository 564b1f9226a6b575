"""Sizes of the encoder (paper, section 2.2 and appendix; tiny and small as in DeiT)."""

PRESETS = {
    'tiny': {'width': 192, 'depth': 12, 'heads': 3, 'hidden': 768},
    'small': {'width': 384, 'depth': 12, 'heads': 6, 'hidden': 1536},
    'base': {'width': 768, 'depth': 12, 'heads': 12, 'hidden': 3072},
    'large': {'width': 1024, 'depth': 24, 'heads': 16, 'hidden': 4096},
}
