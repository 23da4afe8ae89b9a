"""What several test files share: small tasks, scans and runs that the tests write themselves."""

from helpers import shapes as shapes  # the check of shapes is looked up as an attribute of this package
