"""What all figures have in common."""

DPI = 150


# Okabe and Ito's colours, which the colour-blind can tell apart, without the yellow, too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
