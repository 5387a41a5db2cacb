"""What the planner refuses, and why.

PlannerError
 ├─ UnsupportedArchitectureError   a model family whose parameters are not known
 ├─ InvalidConfigurationError      a config.json that lacks a number or contradicts itself
 ├─ InvalidSetupError              training choices that contradict each other
 ├─ DoesNotFitError                no device can hold any allowed run
 └─ DriverError                    the NVIDIA driver is there but does not answer
"""


class PlannerError(Exception):
    """Base of everything the planner raises. The message is written for the person who asked for the plan."""


class UnsupportedArchitectureError(PlannerError):
    """Raised when `model_type` names a family whose parameters are not known."""


class InvalidConfigurationError(PlannerError, ValueError):
    """Raised when a config.json lacks a needed number or its numbers contradict each other."""


class InvalidSetupError(PlannerError, ValueError):
    """Raised when training choices contradict each other or lie outside their range.

    `option`: the field of `RequestedConfig` to change, where it is one.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class UnusableDeviceError(InvalidSetupError):
    """Raised when no device has the kernels or the number format that is asked for."""


class DoesNotFitError(PlannerError):
    """Raised when nothing that is asked for fits any device. The message names the smallest change or GPU."""


class DriverError(PlannerError):
    """Raised when NVML is present but reading the devices fails."""
