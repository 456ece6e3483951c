"""A server of questions: its HTTP interface, its readings, and the engines behind them."""
