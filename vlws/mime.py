"""MIME types under which a notebook's outputs carry data beside what they show."""

MEASURE = "application/vnd.vlws.measure+json"  # claims.Measure.to_dict
GATE = "application/vnd.vlws.gate+json"  # {name, says, metric, direction, threshold, value, values, passed}
ARMS = "application/vnd.vlws.arms+json"  # {name, seeds, arms: {arm: {metric: [per seed]}}, seconds, code}
TABLE = "application/vnd.vlws.table+json"  # {columns, index, rows}
RESULT = "application/vnd.vlws.result+json"  # of the reader's data: [{name, metric, unit, value, low, high, n, of}]
