// The official OpenAI SDK for JavaScript, unmodified, against the real proxy and the simulated Mistral.
// Run by ../test_node.py with BASE_URL, API_KEY, OTHER_KEY and SIMULATOR in the environment.

import "./suite/cache.mjs";
import "./suite/chat.mjs";
import "./suite/embeddings.mjs";
import "./suite/errors.mjs";
import "./suite/leaving.mjs";
import "./suite/models.mjs";
import "./suite/streams.mjs";
import "./suite/structured.mjs";
import "./suite/tools.mjs";
