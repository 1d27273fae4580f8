"""The only package that imports CrypTen: prepares, patches and extends it; offers what tasks and models need of it."""
