"""A model that is run on batches of data: its inputs, the products of inputs with parameters, several processes."""
