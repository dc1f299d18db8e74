"""The addresses of the service, a router for each group of them.

`service.app` includes every router; what a route needs besides its request it finds in
`request.app.state.service`.
"""
