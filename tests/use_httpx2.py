"""A pytest plug-in, loaded first: makes `import httpx` mean httpx2, so that respx mocks the transport we really use.

httpx2 ships `alias_httpx()` for this; respx 0.23 does not know httpx2 by name.
"""

import httpx2

httpx2.alias_httpx()
