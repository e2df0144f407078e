"""The paper's experiments on the 60,000 images of Fashion-MNIST: `run` trains, `draw` makes the pictures and the table.

    apt-get install dataset-fashion-mnist
    python -m experiments.fashion_mnist.run                 hours; stop it at any time, the same command goes on
    python -m experiments.fashion_mnist.draw                seconds; from the CSV files alone
"""
