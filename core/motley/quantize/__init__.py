"""Number formats that train. Needs torch, except `schedule`.

Every rule takes a leading client dimension K: weights of one layer are [K, d], its centres [K, m].
"""
