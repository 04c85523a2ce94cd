"""`run.py fidelity`: packets captured at both ends of a link, judged without its own books, and then against them."""
