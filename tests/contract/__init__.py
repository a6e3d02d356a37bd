"""The contracts that hold the package together: floors, SQL, metric names."""
