"""make_app: a plane as an ASGI application."""

from __future__ import annotations

from starlette.routing import Router

from certctrl.plane.core import Plane
from certctrl.plane.http.access_api import AccessApi
from certctrl.plane.http.alert_api import AlertApi
from certctrl.plane.http.anchor_api import AnchorApi
from certctrl.plane.http.audit_api import AuditApi
from certctrl.plane.http.ca_api import CaApi
from certctrl.plane.http.console.alert_pages import ConsoleAlerts
from certctrl.plane.http.console.changes import ConsoleChanges
from certctrl.plane.http.console.operator_pages import ConsoleOperators
from certctrl.plane.http.console.pages import Console
from certctrl.plane.http.console.profile_pages import ConsoleProfiles
from certctrl.plane.http.console.records import ConsoleRecords
from certctrl.plane.http.console.starts import ConsoleStarts
from certctrl.plane.http.console.visits import UnknownPages
from certctrl.plane.http.crl_api import CrlApi
from certctrl.plane.http.device_api import DeviceApi
from certctrl.plane.http.faults import Faults
from certctrl.plane.http.fleet_api import FleetApi
from certctrl.plane.http.health import Health
from certctrl.plane.http.issuing_api import IssuingApi
from certctrl.plane.http.life_api import LifeApi
from certctrl.plane.http.lifecycle_api import LifecycleApi
from certctrl.plane.http.middleware import App, Middleware
from certctrl.plane.http.operator_api import OperatorApi
from certctrl.plane.http.operator_resources import OperatorResources
from certctrl.plane.http.pages.approval import ApprovalPage
from certctrl.plane.http.pages.provider import ProviderPage
from certctrl.plane.http.permissions import PERMISSIONS
from certctrl.plane.http.profile_api import ProfileApi
from certctrl.plane.http.rollout_api import RolloutApi
from certctrl.plane.http.routing import DirectRoutes, DryRuns
from certctrl.plane.http.stream_api import StreamApi

__all__ = ["Plane", "make_app"]


def make_app(plane: Plane, *, faults: Faults | None = None) -> App:
    """Return the application; the caller owns the plane. It starts no tasks or threads.

    ``faults`` injects scripted faults before all routes, for tests.
    """
    push = StreamApi(plane)
    of_devices = [*DeviceApi(plane).routes(), *push.device_routes()]
    routes = [
        *Health(plane).routes(),
        *AnchorApi(plane).routes(),
        *CrlApi(plane).routes(),
        *of_devices,
        *OperatorApi(plane).routes(),
        *OperatorResources(plane).routes(),
        *CaApi(plane).routes(),
        *AuditApi(plane).routes(),
        *AccessApi(plane).routes(),
        *IssuingApi(plane).routes(),
        *LifecycleApi(plane).routes(),
        *LifeApi(plane).routes(),
        *ProfileApi(plane).routes(),
        *RolloutApi(plane).routes(),
        *FleetApi(plane).routes(),
        *AlertApi(plane).routes(),
        *push.operator_routes(),
        *ApprovalPage(plane).routes(),
        *ProviderPage(plane).routes(),
        *ConsoleAlerts(plane).routes(),
        *ConsoleOperators(plane).routes(),
        *Console(plane).routes(),
        *ConsoleProfiles(plane).routes(),
        *ConsoleStarts(plane).routes(),
        *ConsoleRecords(plane).routes(),
        *ConsoleChanges(plane).routes(),
        *UnknownPages(plane).routes(),  # after all others of the console
    ]
    changing = {path for (_, path), permission in PERMISSIONS.items() if permission.action}
    tried = [route for route in routes if route.path in changing]
    inner = DirectRoutes(of_devices, DryRuns(tried, Router(routes, redirect_slashes=False)))
    app = Middleware(plane, inner, (route.path for route in routes))
    return app if faults is None else faults.around(app)
