"""Descriptions of the API: OpenAPI, AsyncAPI, and the parameters that both share."""
