"""The paper's own experiments: `headline` (Theorem 2.12 on a real network), `section3`, `section4`.

Li & Arora, *An Exponential Learning Rate Schedule for Deep Learning*, ICLR 2020.
"""
