"""The server described for programs: an OpenAPI document, made from the routes of the application."""
