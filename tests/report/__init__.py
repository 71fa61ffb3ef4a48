"""Tests of reports and graphs; golden/ holds the texts that they are compared with."""
