"""Runs a module of Python's own tests in a directory, and prints a line for each test."""

import importlib
import os
import sys
import tempfile
import unittest
import warnings

directory, name = sys.argv[1:]
os.chdir(directory)
tempfile.tempdir = directory
warnings.simplefilter("ignore")


class Result(unittest.TestResult):
    """A test counts once, however many of its parts fail."""

    def startTest(self, test):
        super().startTest(test)
        self.verdict, self.words = "ok", ""

    def bad(self, error):
        self.verdict = "not ok"
        self.words = f"{error[0].__name__}: {error[1]}".strip().replace("\n", " ")[:300]

    def addError(self, test, error):
        if not hasattr(test, "_testMethodName"):  # setUpClass, setUpModule
            self.tell(test, "not ok", f"{error[0].__name__}: {error[1]}".replace("\n", " "))
        else:
            self.bad(error)

    def addFailure(self, test, error):
        self.bad(error)

    def addSubTest(self, test, part, error):
        if error is not None:
            self.bad(error)

    def addSkip(self, test, reason):
        if not hasattr(self, "verdict"):
            return
        self.verdict, self.words = "skip", reason.replace("\n", " ")

    def addUnexpectedSuccess(self, test):
        self.verdict, self.words = "not ok", "succeeded unexpectedly"

    def stopTest(self, test):
        super().stopTest(test)
        self.tell(test, self.verdict, self.words)

    def tell(self, test, verdict, words):
        case = test.id().replace(": ", ":").removeprefix("test.")
        sys.__stdout__.write(f"\n{verdict} {case}" + (f": {words}" if words else "") + "\n")
        sys.__stdout__.flush()


try:
    module = importlib.import_module(f"test.{name}")
except (ImportError, unittest.SkipTest) as error:
    print(f"skip {name}: {error}")
    sys.exit(0)
suite = unittest.defaultTestLoader.loadTestsFromModule(module)
suite.run(Result())
