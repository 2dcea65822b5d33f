"""Scenarios that ship with tokenpools, installed as data."""
