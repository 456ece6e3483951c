"""The style that all figures share."""

DPI = 150
# Okabe and Ito's colours, which are distinct to colour-blind readers, without yellow, which is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
