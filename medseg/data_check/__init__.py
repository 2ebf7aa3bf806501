"""`medseg data check DIR`: all that is wrong or doubtful in a data folder, at once."""
