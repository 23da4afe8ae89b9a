"""Objectives: functions of log-odds and truth that an attacker climbs."""
