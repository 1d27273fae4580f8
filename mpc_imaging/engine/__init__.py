"""The only package that imports CrypTen: it prepares, patches and extends it, and offers what tasks and models need of it."""
